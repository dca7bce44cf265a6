//! Slots, leases, clocks and cancellation of one client. A state machine without IO.
