//! What a rule of the guard would have done.
