//! Which addresses are not of a network of our own.
