//! Answers that may be asked for again.
