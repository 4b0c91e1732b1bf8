//! Tells the database on which channels gateways bring codes to users.

use std::time::Duration;

use adapters_gateway::Gateway;
use adapters_persistence::SqlGateways;
use application::{Chain, RoutedGateway};
use domain::{Channel, GatewayName};

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// The channels of gateways. They are stored before the first call, because other processes show them
/// for calls, and may not know the gateway.
#[derive(Debug)]
pub(in crate::roles) struct Channels(Vec<(GatewayName, Channel)>);

impl Channels {
    pub(in crate::roles) fn of(gateways: &[RoutedGateway<Gateway>]) -> Self {
        Self(gateways.iter().map(|it| (it.name.clone(), it.gateway.channel())).collect())
    }

    /// Stores them. Tries until it succeeds.
    pub(in crate::roles) async fn store(&self, store: &SqlGateways) {
        while let Err(error) = store.name_channels(&self.0).await {
            tracing::warn!(
                error = %Chain(&error),
                "the channels of the gateways are not stored, so none is called yet; trying again"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }
}
