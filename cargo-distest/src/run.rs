//! The pipeline, one line per stage.
