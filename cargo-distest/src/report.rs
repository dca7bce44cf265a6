//! Reporters: what becomes of events.
