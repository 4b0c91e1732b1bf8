//! What became of the messages of each gateway, for `messager gateways list`.

use std::collections::{BTreeMap, BTreeSet};

use adapters_persistence::SqlGatewayHealth;
use application::{
    JudgeGateways,
    ports::{GatewayHealth, Measured, StoreError, StoredFactor},
};
use domain::{Factor, GatewayName, HealthCounts, Region, RegionalGateway};
use serde_json::{Value, json};

/// The counts of the last half hour, and the factors.
#[derive(Debug, Default)]
pub(super) struct Health {
    counts: BTreeMap<RegionalGateway, HealthCounts>,
    /// The factors that are not full.
    factors: BTreeMap<RegionalGateway, Factor>,
}

impl Health {
    /// Reads the health. Without `moves`, every factor is full.
    pub(super) async fn read(health: &SqlGatewayHealth, moves: bool) -> Result<Self, StoreError> {
        let measured = health.measured(JudgeGateways::<SqlGatewayHealth>::LOOK_BACK).await?;
        let factors = if moves { health.factors().await? } else { Vec::new() };
        Ok(Self::of(&measured, factors))
    }

    pub(super) fn of(measured: &[Measured], factors: Vec<StoredFactor>) -> Self {
        let mut counts: BTreeMap<_, HealthCounts> = BTreeMap::new();
        for it in measured {
            *counts.entry(it.of.clone()).or_default() += it.counts;
        }
        let factors = factors.into_iter().map(|it| (it.of, it.factor));
        Self { counts, factors: factors.filter(|(_, factor)| *factor < Factor::FULL).collect() }
    }

    /// Returns the shares of receipts in time and of approved codes over all regions, and the factors
    /// of a gateway.
    pub(super) fn cells(&self, gateway: &GatewayName) -> [String; 3] {
        let of_it = self.counts.iter().filter(|(of, _)| of.gateway == *gateway);
        let counts: HealthCounts = of_it.map(|(_, counts)| counts).sum();
        let in_time = if counts.reported > 0 { counts.sent } else { 0 };
        let of_it = self.factors.iter().filter(|(of, _)| of.gateway == *gateway);
        let factors: Vec<String> =
            of_it.map(|(of, factor)| format!("{} {}", region(of), factor.share())).collect();
        let factors = if factors.is_empty() { "1".to_owned() } else { factors.join(", ") };
        [percent(counts.in_time, in_time), percent(counts.approved, counts.sent), factors]
    }

    /// Returns the counts and the factors of a gateway by region.
    pub(super) fn json(&self, gateway: &GatewayName) -> Value {
        let all: BTreeSet<_> = self.counts.keys().chain(self.factors.keys()).collect();
        let object = |of: &&RegionalGateway| {
            let counts = self.counts.get(*of).copied().unwrap_or_default();
            let factor = self.factors.get(*of).copied().unwrap_or(Factor::FULL);
            json!({
                "region": of.region.as_ref().map(Region::as_str),
                "sent": counts.sent,
                "reported": counts.reported,
                "in_time": counts.in_time,
                "approved": counts.approved,
                "factor": factor.share(),
            })
        };
        let of_it = all.iter().filter(|of| of.gateway == *gateway);
        of_it.map(object).collect::<Vec<Value>>().into()
    }
}

fn region(of: &RegionalGateway) -> &str {
    of.region.as_ref().map_or("unknown", Region::as_str)
}

fn percent(part: u32, of: u32) -> String {
    let (part, of) = (u64::from(part), u64::from(of));
    match of {
        0 => "-".to_owned(),
        _ => format!("{}%", (200 * part + of) / (2 * of)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use application::ports::Minute;

    use super::*;

    fn of(gateway: &str, region: &str) -> RegionalGateway {
        RegionalGateway { gateway: gateway.parse().unwrap(), region: region.parse().ok() }
    }

    fn measured(gateway: &str, region: &str, numbers: [u32; 4]) -> Measured {
        let [sent, reported, in_time, approved] = numbers;
        let counts = HealthCounts { sent, reported, in_time, approved };
        Measured { minute: Minute(1), of: of(gateway, region), counts }
    }

    fn stored(gateway: &str, region: &str, percent: u8) -> StoredFactor {
        let factor = Factor::from_percent(percent).unwrap();
        StoredFactor { of: of(gateway, region), factor, age: Duration::ZERO, since: Minute(1) }
    }

    #[test]
    fn shares_are_those_of_all_regions_and_factors_those_of_each() {
        let measured = [
            measured("main", "RU", [100, 90, 80, 60]),
            measured("main", "RU", [100, 90, 80, 60]),
            measured("main", "", [1, 0, 0, 0]),
            measured("local", "RU", [8, 0, 0, 3]),
        ];
        let factors =
            vec![stored("main", "", 25), stored("main", "RU", 10), stored("local", "RU", 100)];
        let health = Health::of(&measured, factors);
        let cells = |gateway: &str| health.cells(&gateway.parse().unwrap());

        assert_eq!(cells("main"), ["80%", "60%", "unknown 0.25, RU 0.1"]);
        assert_eq!(cells("local"), ["-", "38%", "1"]);
        assert_eq!(cells("new"), ["-", "-", "1"]);
        let json = health.json(&"main".parse().unwrap());
        assert_eq!(
            json[1],
            json!({
                "region": "RU", "sent": 200, "reported": 180, "in_time": 160, "approved": 120,
                "factor": 0.1,
            })
        );
        assert_eq!((&json[0]["region"], &json[0]["factor"]), (&Value::Null, &json!(0.25)));
        assert_eq!(health.json(&"new".parse().unwrap()), json!([]));
    }
}
