//! What a worker lacks, and sending it.
