//! The headers of limits.
