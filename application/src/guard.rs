//! Noticing that nobody answers.
