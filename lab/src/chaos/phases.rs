//! The phases of a round.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::traffic::Traffic;

/// A pause of the lab that lasts this much longer is the machine's doing, and an incident: the
/// service waits two seconds for a connection.
pub const SLOW_AFTER: Duration = Duration::from_millis(1_500);

/// The time after the faults within which every message must be done.
pub const RECOVERY: Duration = Duration::from_secs(60);

/// Injects faults under load for `length`, then heals, and only then ends the load.
pub async fn inject(
    length: Duration,
    faults: impl AsyncFnOnce(&CancellationToken) -> anyhow::Result<()>,
    heal: impl AsyncFnOnce() -> anyhow::Result<()>,
    traffic: &mut Traffic,
) -> anyhow::Result<()> {
    let (stop, stop_traffic) = (CancellationToken::new(), CancellationToken::new());
    let injected = async {
        let timer = async {
            sleep(length).await;
            stop.cancel();
            anyhow::Ok(())
        };
        let result = tokio::try_join!(faults(&stop), timer).map(|_| ());
        let healed = heal().await;
        stop_traffic.cancel();
        result.and(healed)
    };
    let (injected, ()) = tokio::join!(injected, traffic.run(&stop_traffic));
    injected
}
