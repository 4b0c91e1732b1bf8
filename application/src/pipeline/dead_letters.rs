use std::time::Duration;

use autometrics::autometrics;

use crate::ports::{
    DeadLetter, DeadLetters, Incoming, MessageStream, Revived, StoreError, StreamError,
};

/// Reads the record of a dead letter again. This helps if the program or its settings could not read the
/// record before and now can.
#[derive(Debug)]
pub struct RetryDeadLetter<D, S> {
    letters: D,
    /// The topic of the dead letter.
    stream: S,
    default_ttl: Duration,
}

/// The result of a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retried {
    /// The record is a message now.
    Revived(Revived),
    /// The record is still not a message. The dead letter remains.
    Unreadable(&'static str),
    /// The topic no longer has the record. The dead letter remains.
    Gone,
}

/// The reason why a retry failed.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    #[error("the record could not be read")]
    Stream(#[source] StreamError),
    #[error("the message could not be entered in the ledger")]
    Letters(#[source] StoreError),
}

impl<D: DeadLetters, S: MessageStream> RetryDeadLetter<D, S> {
    pub fn new(letters: D, stream: S, default_ttl: Duration) -> Self {
        Self { letters, stream, default_ttl }
    }

    /// Enters the message of `letter` in its group's ledger, if the record is a message now.
    ///
    /// From then on it is delivered like any other message: it is sent once, and never after it has
    /// expired.
    #[autometrics(struct_name = "RetryDeadLetter")]
    pub async fn execute(&self, letter: &DeadLetter) -> Result<Retried, RetryError> {
        match self.read(letter).await.map_err(RetryError::Stream)? {
            Ok(message) => self
                .letters
                .revive(letter, &message, self.default_ttl)
                .await
                .map(Retried::Revived)
                .map_err(RetryError::Letters),
            Err(retried) => Ok(retried),
        }
    }

    async fn read(&self, letter: &DeadLetter) -> Result<Result<Incoming, Retried>, StreamError> {
        let fetched = match self.stream.fetch(letter.partition, letter.offset).await {
            Err(StreamError::OutOfRange { .. }) => return Ok(Err(Retried::Gone)),
            fetched => fetched?,
        };
        let record = fetched.records.into_iter().find(|record| record.offset == letter.offset);
        Ok(match record.map(|record| record.content) {
            None => Err(Retried::Gone),
            Some(Err(reason)) => Err(Retried::Unreadable(reason.0)),
            Some(Ok(message)) => Ok(message),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use domain::{Message, MessageId};

    use super::*;
    use crate::ports::{Fetched, MockDeadLetters, MockMessageStream, Record, Unreadable};

    fn letter() -> DeadLetter {
        DeadLetter {
            id: 1,
            group: "1".into(),
            topic: "t".into(),
            partition: 2,
            offset: 7,
            reason: "not JSON".into(),
            recorded_at: UNIX_EPOCH,
        }
    }

    fn incoming() -> Incoming {
        let message = Message {
            id: MessageId::of_record("t", 2, 7, 0),
            phone: "79990000001".parse().unwrap(),
            code: "123456".parse().unwrap(),
        };
        Incoming { message, validity: None, trace: None, sequence: None }
    }

    async fn retry(
        content: Option<Result<Incoming, Unreadable>>,
        letters: MockDeadLetters,
    ) -> Retried {
        let mut stream = MockMessageStream::new();
        stream.expect_fetch().withf(|p, o| (*p, *o) == (2, 7)).once().returning(move |_, _| {
            let records = match content.clone() {
                // The record after the missing one.
                None => vec![Record { offset: 9, content: Ok(incoming()) }],
                Some(content) => vec![Record { offset: 7, content }],
            };
            Ok(Fetched { records, next_offset: 10, lag: 0 })
        });
        let retry = RetryDeadLetter::new(letters, stream, Duration::from_secs(600));
        retry.execute(&letter()).await.unwrap()
    }

    #[tokio::test]
    async fn a_readable_record_goes_to_the_ledger() {
        for revived in [Revived::Pending, Revived::KnownAlready, Revived::Expired] {
            let mut letters = MockDeadLetters::new();
            letters
                .expect_revive()
                .withf(|it, message, _| *it == letter() && *message == incoming())
                .once()
                .returning(move |_, _, _| Ok(revived));

            let retried = retry(Some(Ok(incoming())), letters).await;

            assert_eq!(retried, Retried::Revived(revived));
        }
    }

    #[tokio::test]
    async fn an_unreadable_or_missing_record_stays_a_dead_letter() {
        let still = retry(Some(Err(Unreadable("no phone"))), MockDeadLetters::new()).await;
        assert_eq!(still, Retried::Unreadable("no phone"));

        let gone = retry(None, MockDeadLetters::new()).await;
        assert_eq!(gone, Retried::Gone);
    }
}
