//! Further messages of a verification.
