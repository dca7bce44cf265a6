//! The worker's side of a connection: a thin implementation of the services.
