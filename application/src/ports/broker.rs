use crate::{BoxError, ports::Outgoing};

/// The broker that messages are published to.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait MessageBroker: Sync + 'static {
    /// Connects if necessary, so that the next publication does not have to.
    async fn ready(&self) -> Result<(), BrokerError>;

    /// Publishes messages. Returns one result for each message, in the given order.
    ///
    /// `Ok` means that the broker has stored the message durably (Kafka: on all in-sync replicas). An
    /// error means that the outcome is unknown: the broker may have stored the message. Messages to
    /// one phone go to one partition in the given order. After one of them fails, the later ones are
    /// not tried.
    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>>;
}

/// The reason why a message was not published.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A retry may succeed.
    #[error("the broker is unavailable")]
    Unavailable(#[source] BoxError),
    /// An earlier message to the same partition failed, so this message was not tried.
    #[error("an earlier message to the same partition failed")]
    Held,
}
