use crate::{BoxError, ports::Claimed};

/// Where messages are published to.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait MessageBroker: Sync + 'static {
    /// Connects where that is needed, so that a publication that follows spends no time on it.
    async fn ready(&self) -> Result<(), BrokerError>;

    /// Publishes messages and says for each, in their order, whether the broker has it.
    ///
    /// `Ok` means stored durably (Kafka: by all in-sync replicas). An error means unknown: the
    /// broker may have it all the same. Messages to one phone land in one partition in the order
    /// given, and none of them is tried after one of them failed.
    async fn publish(&self, messages: &[Claimed]) -> Vec<Result<(), BrokerError>>;
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Trying again may help.
    #[error("the broker is unavailable")]
    Unavailable(#[source] BoxError),
    /// An earlier message to the same partition failed, so this one was not tried.
    #[error("an earlier message to the same partition failed")]
    Held,
}
