//! Static shares. Pure.
