//! cargo's JSON messages → test binaries and their environment.
