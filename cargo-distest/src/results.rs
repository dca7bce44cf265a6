//! Folds events into a summary. Pure.
