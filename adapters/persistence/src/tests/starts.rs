//! Beginning a verification.
