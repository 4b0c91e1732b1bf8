//! What the guard counts.
