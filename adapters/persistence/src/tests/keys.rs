//! Keys of callers, and secrets.
