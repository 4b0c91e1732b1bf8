//! What gateways tell of messages that they took.

use application::ports::{Answers, ApiKeys, Outbox, Verifications};
use rand_core::CryptoRng;

use super::{
    Asked, Surface,
    answer::Reply,
    body,
    problem::{Problem, ProblemKind},
};

impl<O, V, A, K, R> Surface<O, V, A, K, R>
where
    O: Outbox,
    V: Verifications,
    A: Answers,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    pub(super) async fn note_receipt(&self, asked: &Asked) -> Result<Reply, Problem> {
        let (message, receipt) = body::receipt(asked.json()?)?;
        match self.v1.receipts.execute(message, receipt).await {
            Ok(true) => Ok(Reply::empty()),
            Ok(false) => Err(ProblemKind::NotFound.into()),
            Err(error) => Err(self.unavailable(&error)),
        }
    }
}
