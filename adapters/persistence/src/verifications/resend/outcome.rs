use application::ports::{Resend, Verification};

use crate::database::{DatabaseError, Parameters, Transaction, hex};

/// What became of one try to send again.
#[derive(Debug)]
pub(super) enum Outcome {
    Sent(Box<Verification>),
    /// The verification is not what the caller took it for.
    Changed,
    PhoneFull,
    /// A counter has no room.
    CounterFull,
}

impl Outcome {
    /// Commits a send, and rolls anything else back.
    pub(super) async fn end(self, transaction: Transaction) -> Result<Self, DatabaseError> {
        if matches!(self, Self::Sent(_)) {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        Ok(self)
    }
}

/// Adds hash, seed and pepper of a new code; empty texts if the code stays the same.
pub(super) fn new_secret(parameters: Parameters, again: &Resend) -> Parameters {
    let [code_hash, seed, pepper] = again.secret.as_ref().map_or_else(Default::default, |secret| {
        let pepper = secret.pepper.as_str().to_owned();
        [hex(secret.code_hash.as_bytes()), hex(secret.seed.as_bytes()), pepper]
    });
    parameters.with("code_hash", code_hash).with("seed", seed).with("pepper", pepper)
}
