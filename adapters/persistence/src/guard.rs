//! What the guard counts and decides.
