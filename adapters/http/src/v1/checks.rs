//! Trying a code.
