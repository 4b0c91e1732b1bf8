use std::collections::BTreeSet;

use application::{Judged, ports::Measured};
use domain::{GatewayName, Region, RegionalGateway};
use prometheus::{IntCounterVec, Opts, Registry};

use super::registered;

/// Metrics of what became of messages, counted by the process that looked.
#[derive(Debug, Clone)]
pub(crate) struct HealthMetrics {
    sampled: IntCounterVec,
}

/// The region of messages to regions that no route names. There are too many for a label.
pub(super) const OTHER: &str = "other";

impl HealthMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let sampled = IntCounterVec::new(
            Opts::new(
                "messager_gateway_sampled_messages_total",
                "Messages that a gateway accepted and that were looked at minutes later, by result.",
            ),
            &["gateway", "region", "result"],
        );
        Ok(Self { sampled: registered(registry, sampled)? })
    }

    /// Counts what was measured. Each of `gateways` has its series from the start, in each of the
    /// `regions` that routes name for it.
    pub(crate) fn judged(
        &self,
        gateways: &[GatewayName],
        regions: &BTreeSet<RegionalGateway>,
        judged: &Judged,
    ) {
        for gateway in gateways {
            self.add(gateway.as_str(), OTHER, [0; 4]);
        }
        for of in regions {
            self.add(of.gateway.as_str(), region(of), [0; 4]);
        }
        for Measured { of, counts, .. } in &judged.measured {
            let region = if regions.contains(of) { region(of) } else { OTHER };
            let counts = [counts.sent, counts.reported, counts.in_time, counts.approved];
            self.add(of.gateway.as_str(), region, counts);
        }
    }

    fn add(&self, gateway: &str, region: &str, counts: [u32; 4]) {
        for (result, count) in ["sent", "reported", "in_time", "approved"].into_iter().zip(counts) {
            self.sampled.with_label_values(&[gateway, region, result]).inc_by(count.into());
        }
    }
}

fn region(of: &RegionalGateway) -> &str {
    of.region.as_ref().map_or(OTHER, Region::as_str)
}

#[cfg(test)]
mod tests {
    use application::ports::Minute;
    use domain::HealthCounts;
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn messages_are_counted_by_the_regions_of_the_routes() {
        let registry = Registry::new();
        let metrics = HealthMetrics::register(&registry).unwrap();
        let of = |region: &str| RegionalGateway {
            gateway: "main".parse().unwrap(),
            region: region.parse().ok(),
        };
        let counts = HealthCounts { sent: 10, reported: 8, in_time: 7, approved: 6 };
        let measured = |region| Measured { minute: Minute(1), of: of(region), counts };
        let judged =
            Judged { measured: ["RU", "DE", ""].map(measured).into(), changed: Vec::new() };
        let gateways = ["main", "local"].map(|name| name.parse().unwrap());

        metrics.judged(&gateways, &[of("RU"), of("KZ")].into(), &judged);

        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for (labels, count) in [
            (r#"gateway="main",region="RU",result="approved""#, 6),
            (r#"gateway="main",region="RU",result="in_time""#, 7),
            (r#"gateway="main",region="other",result="sent""#, 20),
            (r#"gateway="main",region="KZ",result="sent""#, 0),
            (r#"gateway="local",region="other",result="reported""#, 0),
        ] {
            let line = format!("messager_gateway_sampled_messages_total{{{labels}}} {count}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
        assert!(!text.contains("\"DE\""), "{text}");
    }
}
