//! The client's paths on this machine.
