//! What requests say.
