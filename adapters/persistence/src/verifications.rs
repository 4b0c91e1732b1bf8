//! Verifications after their first message.

mod sql;
