//! Costs from past timings. Pure.
