//! `messager gateways list`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    time::Duration,
};

use adapters_persistence::{Database, ReportedGateway, SqlGatewayHealth, SqlGateways};
use application::{BudgetStatus, Spent};
use domain::{Amount, GatewayName, Region};
use serde_json::{Value, json};

use super::{
    super::{
        Output,
        table::{Form, Table, json_text},
        with_database,
    },
    health::Health,
};
use crate::{
    config::{Config, GatewaysConfig, Weights},
    roles::tariffs,
};

/// A process that said nothing for this long has ended, or cannot reach the database.
const SILENT: Duration = Duration::from_secs(60);

type Budgets = BTreeMap<GatewayName, Vec<BudgetStatus>>;

/// The state of one gateway in one process.
struct Row<'a> {
    gateway: &'a GatewayName,
    provider: &'a str,
    /// `None`: no process has the gateway.
    reported: Option<&'a ReportedGateway>,
    is_drained: bool,
    health: &'a Health,
    /// Each daily limit, with what all processes have spent of it today.
    budgets: &'a [BudgetStatus],
}

/// What is known of the gateways.
#[derive(Debug)]
pub(crate) struct Gateways {
    table: Table<{ HEAD.len() }>,
    json: Value,
    /// Whether each gateway is in service, which it is unless it is drained.
    in_service: Vec<(GatewayName, bool)>,
}

/// Prints a row for each gateway and process.
pub(super) async fn execute(config: &Config, json: bool) -> anyhow::Result<()> {
    with_database(config, "messager gateways", async |database| {
        let region = config.numbers.default_region;
        let gateways = Gateways::read(&config.gateways, region, database).await?;
        let text = match Form::of(json) {
            Form::Json => json_text(&gateways.json),
            form => gateways.table.text(form),
        };
        Ok(write!(Output, "{text}")?)
    })
    .await
}

impl Gateways {
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { table: Table::new(HEAD), json: Value::Null, in_service: Vec::new() }
    }

    /// Reads the state of the gateways of `config`. `region` is the default region.
    pub(crate) async fn read(
        config: &GatewaysConfig,
        region: Option<Region>,
        database: &Database,
    ) -> anyhow::Result<Self> {
        let gateways = SqlGateways::new(database.clone());
        let drained = gateways.drained().await?;
        let reported = gateways.reported(SILENT).await?;
        let moves = config.weights == Weights::Move;
        let health = Health::read(&SqlGatewayHealth::new(database.clone()), moves).await?;
        let budgets = budgets(config, region, &gateways.spent_today().await?);
        let rows = rows(config, &reported, &drained, &health, &budgets);
        let mut in_service: Vec<(GatewayName, bool)> =
            rows.iter().map(|row| (row.gateway.clone(), !row.is_drained)).collect();
        in_service.dedup();
        Ok(Self { table: table(&rows), json: json_of(&rows), in_service })
    }

    pub(crate) fn table(&self) -> &Table<{ HEAD.len() }> {
        &self.table
    }

    pub(crate) fn json(&self) -> Value {
        self.json.clone()
    }

    pub(crate) fn in_service(&self) -> &[(GatewayName, bool)] {
        &self.in_service
    }
}

/// Returns the limits of each configured gateway that has any.
fn budgets(config: &GatewaysConfig, region: Option<Region>, spent: &Spent) -> Budgets {
    let tariffs = tariffs(config, region).into_iter();
    let status =
        tariffs.map(|(name, tariff)| (name.clone(), tariff.status(&name, spent.get(&name))));
    status.collect()
}

/// Returns the rows of the configured gateways in their order, and then of those that only running
/// processes have.
fn rows<'a>(
    config: &'a GatewaysConfig,
    reported: &'a [ReportedGateway],
    drained: &BTreeSet<GatewayName>,
    health: &'a Health,
    budgets: &'a Budgets,
) -> Vec<Row<'a>> {
    let configured = config.gateways.iter().map(|it| (&it.name, it.provider));
    let is_configured = |name: &GatewayName| config.find(name).is_some();
    let mut others: Vec<_> = reported
        .iter()
        .filter(|it| !is_configured(&it.report.gateway))
        .map(|it| (&it.report.gateway, it.report.provider.as_str()))
        .collect();
    others.dedup();
    let mut rows = Vec::new();
    for (gateway, provider) in configured.chain(others) {
        let budgets = budgets.get(gateway).map_or(&[][..], Vec::as_slice);
        let is_drained = drained.contains(gateway);
        let row = |reported| Row { gateway, provider, reported, is_drained, health, budgets };
        let before = rows.len();
        rows.extend(reported.iter().filter(|it| it.report.gateway == *gateway).map(Some).map(row));
        if rows.len() == before {
            rows.push(row(None));
        }
    }
    rows
}

const HEAD: [&str; 12] = [
    "gateway",
    "provider",
    "process",
    "state",
    "in flight",
    "accepted",
    "refused",
    "unclear",
    "in time",
    "approved",
    "factor",
    "spent today",
];

impl Row<'_> {
    fn state(&self) -> String {
        let state = self.reported.map_or("unused", |it| it.report.state.as_str());
        let reason = self.reported.map_or("", |it| it.report.reason.as_str());
        let state = if self.is_drained { "drained" } else { state };
        if reason.is_empty() || self.is_drained {
            state.to_owned()
        } else {
            format!("{state}: {reason}")
        }
    }

    /// Says what was spent today: `2.5 of 100, international 0 of 10`.
    fn spent(&self) -> String {
        let limit = |it: &BudgetStatus| {
            let scope = if it.scope == "total" { "" } else { &it.scope };
            format!("{scope} {} of {}", it.spent, it.limit).trim_start().to_owned()
        };
        let limits: Vec<String> = self.budgets.iter().map(limit).collect();
        if limits.is_empty() { "-".to_owned() } else { limits.join(", ") }
    }

    fn cells(&self) -> [Value; HEAD.len()] {
        let count = |of: fn(&ReportedGateway) -> u64| Value::from(self.reported.map(of));
        let [in_time, approved, factor] = self.health.cells(self.gateway);
        [
            self.gateway.as_str().into(),
            self.provider.into(),
            self.reported.map(|it| it.process.as_str()).into(),
            self.state().into(),
            count(|it| it.report.in_flight),
            count(|it| it.report.accepted),
            count(|it| it.report.refused),
            count(|it| it.report.unclear),
            in_time.into(),
            approved.into(),
            factor.into(),
            self.spent().into(),
        ]
    }
}

fn table(rows: &[Row<'_>]) -> Table<{ HEAD.len() }> {
    let mut table = Table::new(HEAD);
    for row in rows {
        table.row(row.cells());
    }
    table
}

fn json_of(rows: &[Row<'_>]) -> Value {
    let number = |amount: Amount| -> Value {
        serde_json::from_str(&amount.to_string()).expect("an amount is a number")
    };
    let limit = |it: &BudgetStatus| {
        let (spent, limit) = (number(it.spent), number(it.limit));
        json!({ "scope": it.scope, "spent": spent, "limit": limit })
    };
    let object = |row: &Row<'_>| {
        let report = row.reported.map(|it| &it.report);
        json!({
            "gateway": row.gateway.as_str(),
            "provider": row.provider,
            "process": row.reported.map(|it| &it.process),
            "state": if row.is_drained { "drained" } else { report.map_or("unused", |it| &it.state) },
            "reason": report.map(|it| &it.reason).filter(|it| !it.is_empty()),
            "in_flight": report.map(|it| it.in_flight),
            "accepted": report.map(|it| it.accepted),
            "refused": report.map(|it| it.refused),
            "unclear": report.map(|it| it.unclear),
            "health": row.health.json(row.gateway),
            "budgets": row.budgets.iter().map(limit).collect::<Vec<Value>>(),
            "reported_seconds_ago": row.reported.map(|it| it.age.as_secs()),
        })
    };
    rows.iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use adapters_persistence::GatewayReport;

    use super::*;

    fn config() -> GatewaysConfig {
        crate::config::Config::from_lookup(&|_| None).unwrap().gateways
    }

    fn reported(gateway: &str, process: &str, state: &str, reason: &str) -> ReportedGateway {
        ReportedGateway {
            process: process.to_owned(),
            report: GatewayReport {
                gateway: gateway.parse().unwrap(),
                provider: "twilio".to_owned(),
                state: state.to_owned(),
                reason: reason.to_owned(),
                in_flight: 3,
                accepted: 20,
                refused: 1,
                unclear: 0,
            },
            age: Duration::from_secs(2),
        }
    }

    #[test]
    fn each_process_is_a_row_and_gateways_without_a_process_too() {
        let config = config();
        let reported = [
            reported("gone", "12-a", "closed", ""),
            reported("gone", "13-b", "open", "misconfigured: HTTP 401"),
        ];
        let health = Health::default();
        let budgets = Budgets::new();
        let rows = rows(&config, &reported, &BTreeSet::new(), &health, &budgets);

        assert_eq!(
            table(&rows).text(Form::Tabs),
            "gateway\tprovider\tprocess\tstate\tin flight\taccepted\trefused\tunclear\t\
             in time\tapproved\tfactor\tspent today\n\
             default\tconsole\t-\tunused\t-\t-\t-\t-\t-\t-\t1\t-\n\
             gone\ttwilio\t12-a\tclosed\t3\t20\t1\t0\t-\t-\t1\t-\n\
             gone\ttwilio\t13-b\topen: misconfigured: HTTP 401\t3\t20\t1\t0\t-\t-\t1\t-\n"
        );
        let columns = table(&rows).text(Form::Columns { colours: false });
        assert!(columns.contains("gone     twilio    12-a     closed "), "{columns}");
        let json = json_of(&rows);
        assert_eq!(
            (json.as_array().unwrap().len(), &json[2]["reason"]),
            (3, &json!("misconfigured: HTTP 401"))
        );
        assert_eq!((&json[0]["process"], &json[1]["accepted"]), (&Value::Null, &json!(20)));
    }

    #[test]
    fn spending_of_today_is_shown_with_the_limits() {
        let settings = [("GATEWAY_PRICE", "0.05"), ("GATEWAY_DAILY_BUDGET", "100.5")];
        let config = Config::from_lookup(&|name| {
            settings.iter().find(|(known, _)| *known == name).map(|it| it.1.to_owned())
        });
        let config = config.unwrap();
        let spent = [(GatewayName::default(), [(String::new(), 2_550_000)].into())].into();
        let budgets = budgets(&config.gateways, None, &spent);
        let health = Health::default();
        let rows = rows(&config.gateways, &[], &BTreeSet::new(), &health, &budgets);

        assert!(
            table(&rows).text(Form::Tabs).ends_with("\t2.55 of 100.5\n"),
            "{}",
            table(&rows).text(Form::Tabs)
        );
        let json = json_of(&rows);
        let expected = json!([{ "scope": "total", "spent": 2.55, "limit": 100.5 }]);
        assert_eq!(json[0]["budgets"], expected);
        let status = |scope: &str| BudgetStatus {
            gateway: GatewayName::default(),
            scope: scope.to_owned(),
            spent: Amount::ZERO,
            limit: Amount::from_millionths(5_000_000),
        };
        let limits = [status("total"), status("RU")];
        let row = Row { budgets: &limits, ..rows.into_iter().next().unwrap() };
        assert_eq!(row.spent(), "0 of 5, RU 0 of 5");
    }

    #[test]
    fn drained_gateway_is_shown_as_drained_even_if_no_process_has_noticed() {
        let config = config();
        let reported = [reported("default", "12-a", "open", "unavailable")];
        let drained = BTreeSet::from([GatewayName::default()]);

        let health = Health::default();
        let budgets = Budgets::new();
        let rows = rows(&config, &reported, &drained, &health, &budgets);
        let shown = table(&rows).text(Form::Tabs);

        assert!(shown.contains("\tdrained\t3\t"), "{shown}");
    }
}
