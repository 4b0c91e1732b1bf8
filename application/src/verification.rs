//! Looking at a verification, and giving it up.
