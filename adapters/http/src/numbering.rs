//! What a numbering plan knows of a number.
