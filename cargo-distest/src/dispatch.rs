//! Drives the scheduler: performs its effects, feeds it what happens.
