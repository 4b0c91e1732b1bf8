//! The errors of a connection to a broker.

use std::{borrow::Cow, fmt, io, time::Duration};

use kafka_protocol::error::ResponseError;

/// The reason why a request on a connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the broker answers: {0}")]
    Refused(ResponseError),
    #[error("the answer of the broker is invalid: {0}")]
    Nonsense(String),
    #[error("the broker supports no version of {0} that this client supports")]
    NoCommonVersion(&'static str),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the topic has no such partition now")]
    NoSuchPartition,
    /// Trying again will not help: the operator must change something.
    #[error("{0}")]
    Tls(Cow<'static, str>),
    /// Trying again will not help: the operator must change something.
    #[error("{0}")]
    Sasl(String),
    /// Trying again will not help: the operator must change something.
    #[error("the user has no right to {right} the topic {topic:?}; grant it with an ACL")]
    NoRight { right: &'static str, topic: String },
}

impl ConnectionError {
    pub(super) fn is(&self, error: ResponseError) -> bool {
        matches!(self, Self::Refused(refused) if *refused == error)
    }

    /// Whether another try, perhaps with another broker, may succeed.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Io(_) | Self::TimedOut(_) => true,
            Self::Refused(error) => error.is_retriable(),
            Self::Nonsense(_)
            | Self::NoCommonVersion(_)
            | Self::NoSuchPartition
            | Self::Tls(_)
            | Self::Sasl(_)
            | Self::NoRight { .. } => false,
        }
    }

    /// Adds the address of the broker to the errors that an operator must act on.
    pub(super) fn at(self, address: &str) -> Self {
        match self {
            Self::Tls(text) => Self::Tls(format!("{address}: {text}").into()),
            Self::Sasl(text) => Self::Sasl(format!("{address}: {text}")),
            error => error,
        }
    }

    pub(super) fn nonsense(what: impl fmt::Display) -> Self {
        Self::Nonsense(format!("{what:#}"))
    }
}

/// Returns the error that a code of the protocol stands for.
pub(super) fn check(code: i16) -> Result<(), ConnectionError> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(error) => Err(ConnectionError::Refused(error)),
    }
}
