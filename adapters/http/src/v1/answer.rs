//! What they are answered.
