//! The small helper process that starts attempts and clears up after them.
