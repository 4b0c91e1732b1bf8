//! Telling others of events, signed.
