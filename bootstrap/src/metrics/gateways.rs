use application::{GatewayState, GatewayStatus, Router, ports::SmsGateway};
use domain::{Channel, Factor, Region, RegionalGateway};
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector};

use super::{
    health::OTHER,
    on_demand::{self, Readings},
    receipts::NO_REGION,
};

/// Metrics of each gateway, read from the router when they are asked for. So they always name the
/// gateways of the present configuration, also those without a call.
pub(crate) struct GatewayMetrics {
    snapshot: Box<dyn Fn() -> Vec<(GatewayStatus, Channel)> + Send + Sync>,
    factors: Box<dyn Fn() -> Vec<(RegionalGateway, Factor)> + Send + Sync>,
    outcomes: IntCounterVec,
    in_flight: IntGaugeVec,
    state: IntGaugeVec,
    openings: IntCounterVec,
    factor: GaugeVec,
    info: IntGaugeVec,
}

impl GatewayMetrics {
    pub(crate) fn register<G: SmsGateway + Send>(
        registry: &Registry,
        router: Router<G>,
        channel_of: fn(&G) -> Channel,
    ) -> prometheus::Result<()> {
        let counters = |name, help, labels| IntCounterVec::new(Opts::new(name, help), labels);
        let gauges = |name, help, labels| IntGaugeVec::new(Opts::new(name, help), labels);
        let regions = router.clone();
        let metrics = Self {
            factors: Box::new(move || factors(&regions)),
            snapshot: Box::new(move || {
                let with_channel = |status: GatewayStatus| {
                    let gateway = router.gateway(&status.name);
                    (status, gateway.map(|it| channel_of(&it)).unwrap_or_default())
                };
                router.snapshot().into_iter().map(with_channel).collect()
            }),
            outcomes: counters(
                "messager_gateway_outcomes_total",
                "Calls of a gateway that ended, by the class of their outcome.",
                &["gateway", "class"],
            )?,
            in_flight: gauges(
                "messager_gateway_calls_in_flight",
                "Calls of a gateway that have begun and not ended.",
                &["gateway"],
            )?,
            state: gauges(
                "messager_gateway_state",
                "1 for the state in which a gateway is: closed gets messages, open gets none.",
                &["gateway", "state"],
            )?,
            openings: counters(
                "messager_gateway_openings_total",
                "How often a gateway was taken out because its calls failed.",
                &["gateway"],
            )?,
            factor: GaugeVec::new(
                Opts::new(
                    "messager_gateway_factor",
                    "The part of its messages that a gateway gets in a region.",
                ),
                &["gateway", "region"],
            )?,
            info: gauges(
                "messager_gateway_info",
                "1 for each gateway, with the channel on which it brings codes to users.",
                &["gateway", "channel"],
            )?,
        };
        on_demand::register(registry, metrics)
    }
}

impl Readings for GatewayMetrics {
    fn vectors(&self) -> Vec<&dyn Collector> {
        vec![&self.outcomes, &self.in_flight, &self.state, &self.openings, &self.factor, &self.info]
    }

    fn fill(&self) {
        self.outcomes.reset();
        self.in_flight.reset();
        self.state.reset();
        self.openings.reset();
        self.factor.reset();
        self.info.reset();
        for (status, channel) in (self.snapshot)() {
            let name = status.name.as_str();
            self.info.with_label_values(&[name, channel.as_str()]).set(1);
            for (class, count) in status.outcomes {
                self.outcomes.with_label_values(&[name, class.as_str()]).inc_by(count);
            }
            let in_flight = i64::try_from(status.in_flight).unwrap_or(i64::MAX);
            self.in_flight.with_label_values(&[name]).set(in_flight);
            for state in GatewayState::ALL {
                let is_in_it = i64::from(state == status.state);
                self.state.with_label_values(&[name, state.as_str()]).set(is_in_it);
            }
            self.openings.with_label_values(&[name]).inc_by(status.openings);
            self.factor.with_label_values(&[name, OTHER]).set(1.0);
        }
        for (RegionalGateway { gateway, region }, factor) in (self.factors)() {
            let region = region.as_ref().map_or(NO_REGION, Region::as_str);
            self.factor.with_label_values(&[gateway.as_str(), region]).set(factor.share());
        }
    }
}

/// Returns the factors of the regions that routes name, and then those that are not full.
fn factors<G: SmsGateway>(router: &Router<G>) -> Vec<(RegionalGateway, Factor)> {
    let full = router.regions().into_iter().map(|of| (of, Factor::FULL));
    full.chain(router.factors()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use adapters_gateway::ConsoleGateway;
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn a_gateway_without_a_call_has_all_its_metrics() {
        let registry = Registry::new();
        let router = Router::single(ConsoleGateway::stdout(), Duration::from_secs(1));
        GatewayMetrics::register(&registry, router.clone(), |_| Channel::Telegram).unwrap();

        for state in ["closed", "drained"] {
            let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();

            for (name, labels, value) in [
                ("outcomes_total", r#"class="accepted",gateway="default""#, 0),
                ("outcomes_total", r#"class="unroutable",gateway="default""#, 0),
                ("calls_in_flight", r#"gateway="default""#, 0),
                ("openings_total", r#"gateway="default""#, 0),
                ("state", &format!(r#"gateway="default",state="{state}""#), 1),
                ("state", r#"gateway="default",state="open""#, 0),
                ("factor", r#"gateway="default",region="other""#, 1),
                ("info", r#"channel="telegram",gateway="default""#, 1),
            ] {
                let line = format!("messager_gateway_{name}{{{labels}}} {value}\n");
                assert!(text.contains(&line), "{line} is not in {text}");
            }
            assert!(!text.contains("\"RU\""), "{text}");
            router.drain(&router.snapshot().into_iter().map(|status| status.name).collect());
        }
    }

    #[test]
    fn factor_of_a_region_is_shown_while_it_is_not_full() {
        let registry = Registry::new();
        let router = Router::single(ConsoleGateway::stdout(), Duration::from_secs(1));
        GatewayMetrics::register(&registry, router.clone(), |_| Channel::Sms).unwrap();
        let of = |region: &str| RegionalGateway {
            gateway: "default".parse().unwrap(),
            region: region.parse().ok(),
        };

        router.set_factors(["RU", ""].map(|region| (of(region), Factor::LOWEST)));

        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for (region, factor) in [("RU", "0.1"), ("unknown", "0.1"), ("other", "1")] {
            let labels = format!(r#"gateway="default",region="{region}""#);
            let line = format!("messager_gateway_factor{{{labels}}} {factor}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }
}
