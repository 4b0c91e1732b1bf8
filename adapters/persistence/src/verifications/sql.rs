//! The statements on verifications.
