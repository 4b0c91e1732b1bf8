//! The statements that begin a verification.
