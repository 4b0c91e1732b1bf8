//! Windows of phones and of other keys.
