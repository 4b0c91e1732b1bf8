//! Answers to repeated requests.
