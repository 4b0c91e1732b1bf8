//! The gateways: whether they can be built, and what the processes say of them.

use std::{collections::BTreeSet, time::Duration};

use adapters_persistence::{Database, ReportedGateway, SqlGateways};
use application::Chain;
use domain::GatewayName;

use super::findings::Findings;
use crate::config::{Config, GatewayConfig, GatewaysConfig, Mode};

/// A process that said nothing for this long has ended.
const SILENT: Duration = Duration::from_secs(60);

pub(super) async fn examine(config: &Config, database: Option<&Database>, findings: &mut Findings) {
    let gateways = &config.gateways;
    if let Err(error) = gateways.check_secrets() {
        for problem in error.problems() {
            findings.warn("gateways", problem, "a process that sends messages needs this secret");
        }
    }
    let is_console = gateways.gateways.iter().any(GatewayConfig::is_console);
    if is_console && config.process.mode == Mode::Release {
        findings.warn(
            "gateways",
            "the console gateway prints codes and sends no SMS",
            "set GATEWAY to your provider, or GATEWAYS_FILE: docs/gateways.md",
        );
    }
    if gateways.public_url.is_none() && gateways.gateways.iter().any(GatewayConfig::is_over_http) {
        findings.warn(
            "gateways",
            "PUBLIC_URL is not set, so providers cannot report deliveries",
            "set it to the address at which providers reach /v1/receipts/",
        );
    }
    let Some(database) = database else { return };
    let states = SqlGateways::new(database.clone());
    match (states.drained().await, states.reported(SILENT).await) {
        (Ok(drained), Ok(reported)) => judge(gateways, &drained, &reported, findings),
        (Err(error), _) | (_, Err(error)) => {
            findings.warn("gateways", Chain(&error).to_string(), "");
        }
    }
}

fn judge(
    gateways: &GatewaysConfig,
    drained: &BTreeSet<GatewayName>,
    reported: &[ReportedGateway],
    findings: &mut Findings,
) {
    for gateway in &gateways.gateways {
        let name = &gateway.name;
        if drained.contains(name) {
            let advice = format!("`messager gateways undrain {name}` puts it back");
            findings.warn("gateways", format!("{name} is drained"), &advice);
            continue;
        }
        let bad =
            reported.iter().find(|it| it.report.gateway == *name && it.report.state != "closed");
        match bad {
            Some(bad) if bad.report.reason.is_empty() => findings.warn(
                "gateways",
                format!("{name} is {} in {}", bad.report.state, bad.process),
                "see the consumer's log; `messager gateways` shows its calls",
            ),
            Some(bad) => findings.warn(
                "gateways",
                format!("{name} is {} in {}: {}", bad.report.state, bad.process, bad.report.reason),
                "`messager gateways test --to +…` tries it by itself",
            ),
            None => findings.ok("gateways", format!("{name} ({})", gateway.provider)),
        }
    }
}

#[cfg(test)]
mod tests {
    use adapters_persistence::GatewayReport;

    use super::{super::findings::State, *};

    fn judged(state: &str, reason: &str) -> (State, String) {
        let config = Config::from_lookup(&|_| None).unwrap();
        let report = GatewayReport {
            gateway: GatewayName::default(),
            provider: "console".to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            in_flight: 0,
            accepted: 0,
            refused: 0,
            unclear: 0,
        };
        let reported = [ReportedGateway { process: "a".to_owned(), report, age: Duration::ZERO }];
        let mut findings = Findings::default();
        judge(&config.gateways, &BTreeSet::new(), &reported, &mut findings);
        let [finding] = findings.all() else { panic!("{findings:?}") };
        (finding.state, finding.text.clone())
    }

    #[test]
    fn gateway_that_gets_no_messages_is_named_with_the_reason() {
        assert_eq!(judged("closed", ""), (State::Ok, "default (console)".to_owned()));
        let silent = judged("silent", "");
        assert_eq!(silent, (State::Warning, "default is silent in a".to_owned()));
        let open = judged("open", "misconfigured");
        assert_eq!(open, (State::Warning, "default is open in a: misconfigured".to_owned()));
    }
}
