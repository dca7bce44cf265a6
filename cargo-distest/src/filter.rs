//! Which test cases are selected. Pure.
