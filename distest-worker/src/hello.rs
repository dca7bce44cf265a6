//! The fixed greeting before tarpc: who is there, which version.
