//! Bounded capture of an attempt's output, spilling to disk.
