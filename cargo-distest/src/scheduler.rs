//! Who runs what, when. A state machine without IO.
