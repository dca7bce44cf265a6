//! Order and expected cost of test cases. Pure.
