//! The API of verifications.

mod answer;
mod body;
mod checks;
mod verifications;
