//! Sending the code of a verification once more.
