//! Listening for clients.
