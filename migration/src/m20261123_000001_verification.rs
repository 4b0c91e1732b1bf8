//! Verifications, and what protects them.
