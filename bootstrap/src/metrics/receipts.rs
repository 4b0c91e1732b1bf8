use application::ports::{NewReceipt, Noted, Receipt, Rerouting};
use domain::{GatewayName, Region};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use super::{Step, StepMetrics, registered};

/// Metrics of delivery receipts that gateways report.
#[derive(Debug, Clone)]
pub struct ReceiptMetrics {
    receipts: IntCounterVec,
    regions: IntCounterVec,
    delay: HistogramVec,
    rerouted: IntCounterVec,
    steps: StepMetrics,
}

/// The results beside those of [`Receipt`].
const RESULTS: [&str; 5] = ["repeated", "early", "unknown", "unverified", "unreadable"];

/// The region of a number that has none.
pub(super) const NO_REGION: &str = "unknown";

impl ReceiptMetrics {
    pub fn register(registry: &Registry, steps: &StepMetrics) -> prometheus::Result<Self> {
        Ok(Self {
            steps: steps.clone(),
            receipts: registered(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "messager_receipts_total",
                        "Delivery receipts that gateways reported, by gateway and result.",
                    ),
                    &["gateway", "result"],
                ),
            )?,
            regions: registered(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "messager_receipts_by_region_total",
                        "Delivery receipts that were stored, by gateway, region of the number and receipt.",
                    ),
                    &["gateway", "region", "receipt"],
                ),
            )?,
            delay: registered(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "messager_receipt_delay_seconds",
                        "Time from the call that handed an SMS over to its delivery receipt.",
                    )
                    .buckets(vec![
                        0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0,
                        300.0, 600.0, 3_600.0, 86_400.0,
                    ]),
                    &["gateway", "receipt"],
                ),
            )?,
            rerouted: registered(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "messager_rerouted_messages_total",
                        "Codes that were sent again through another gateway, by the gateway without the receipt and the reason.",
                    ),
                    &["gateway", "reason"],
                ),
            )?,
        })
    }

    /// Starts the series of a gateway at zero, so that the first receipt is seen as a rise. The regions
    /// of a gateway are too many for that.
    pub fn expect(&self, gateway: &GatewayName) {
        self.steps.of(Step::Delivered);
        for receipt in Receipt::ALL {
            self.receipts.with_label_values(&[gateway.as_str(), receipt.as_str()]);
            self.delay.with_label_values(&[gateway.as_str(), receipt.as_str()]);
        }
        for result in RESULTS {
            self.receipts.with_label_values(&[gateway.as_str(), result]);
        }
    }

    /// Starts the series of a gateway whose receipts this process awaits.
    pub fn expect_reroutes(&self, gateway: &GatewayName) {
        for reason in Rerouting::ALL {
            self.rerouted.with_label_values(&[gateway.as_str(), reason.as_str()]);
        }
    }

    /// Counts a code that is sent again because the receipt of `gateway` is missing.
    pub fn rerouted(&self, gateway: &GatewayName, reason: Rerouting) {
        self.rerouted.with_label_values(&[gateway.as_str(), reason.as_str()]).inc();
    }

    pub fn noted(&self, gateway: &GatewayName, receipt: Receipt, noted: &Noted) {
        let (gateway, receipt) = (gateway.as_str(), receipt.as_str());
        let result = match noted {
            Noted::Stored(NewReceipt { region, since_call, since_acceptance, trace }) => {
                let region = region.as_ref().map_or(NO_REGION, Region::as_str);
                self.regions.with_label_values(&[gateway, region, receipt]).inc();
                self.delay.with_label_values(&[gateway, receipt]).observe(since_call.as_secs_f64());
                if receipt == Receipt::Delivered.as_str() {
                    self.steps.of(Step::Delivered).observe(since_acceptance.as_secs_f64());
                    self.steps.note(Step::Delivered, *since_acceptance, trace.as_ref());
                }
                receipt
            }
            Noted::Repeated => "repeated",
            Noted::Early => "early",
            Noted::Unknown => "unknown",
        };
        self.receipts.with_label_values(&[gateway, result]).inc();
    }

    /// Counts a call whose token or signature is wrong.
    pub fn unverified(&self, gateway: &GatewayName) {
        self.receipts.with_label_values(&[gateway.as_str(), "unverified"]).inc();
    }

    pub fn unreadable(&self, gateway: &GatewayName) {
        self.receipts.with_label_values(&[gateway.as_str(), "unreadable"]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn series_of_a_gateway_start_at_zero_and_count_by_result_and_region() {
        let registry = Registry::new();
        let steps = StepMetrics::register(&registry).unwrap();
        let metrics = ReceiptMetrics::register(&registry, &steps).unwrap();
        let main: GatewayName = "main".parse().unwrap();
        metrics.expect(&main);
        let lines = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let of = |result: &str| {
            format!(r#"messager_receipts_total{{gateway="main",result="{result}"}}"#)
        };
        for result in ["delivered", "undelivered"].iter().chain(&RESULTS) {
            assert!(lines().contains(&format!("{} 0", of(result))), "{}", lines());
        }

        let stored = |region: &str| {
            Noted::Stored(NewReceipt {
                region: region.parse().ok(),
                since_call: Duration::from_secs(2),
                since_acceptance: Duration::from_secs(7),
                trace: None,
            })
        };
        metrics.noted(&main, Receipt::Delivered, &stored("RU"));
        metrics.noted(&main, Receipt::Undelivered, &stored(""));
        metrics.noted(&main, Receipt::Delivered, &Noted::Unknown);
        metrics.unverified(&main);
        metrics.expect_reroutes(&main);
        metrics.rerouted(&main, Rerouting::NoReceipt);

        for line in [
            &format!("{} 1", of("delivered")),
            &format!("{} 1", of("undelivered")),
            &format!("{} 1", of("unknown")),
            &format!("{} 1", of("unverified")),
            r#"messager_receipts_by_region_total{gateway="main",receipt="delivered",region="RU"} 1"#,
            r#"messager_receipts_by_region_total{gateway="main",receipt="undelivered",region="unknown"} 1"#,
            r#"messager_rerouted_messages_total{gateway="main",reason="no-receipt"} 1"#,
            r#"messager_rerouted_messages_total{gateway="main",reason="undelivered"} 0"#,
            r#"messager_receipt_delay_seconds_bucket{gateway="main",receipt="delivered",le="1"} 0"#,
            r#"messager_receipt_delay_seconds_bucket{gateway="main",receipt="delivered",le="2"} 1"#,
            r#"messager_time_to_step_seconds_bucket{step="delivered",le="5"} 0"#,
            r#"messager_time_to_step_seconds_bucket{step="delivered",le="10"} 1"#,
            r#"messager_time_to_step_seconds_count{step="delivered"} 1"#,
        ] {
            assert!(lines().contains(line), "{line}\n{}", lines());
        }
    }
}
