//! `--list` → test cases, cached by binary digest.
