//! Which blobs go when the store is full. Pure.
