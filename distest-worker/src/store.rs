//! Content-addressed blobs: verified, then renamed into place; bounded.
