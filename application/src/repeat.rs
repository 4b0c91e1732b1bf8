//! Answering a repeated request as the first.
