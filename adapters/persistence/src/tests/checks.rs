//! Guesses.
