use std::{collections::BTreeSet, time::Duration};

use application::{Spent, ports::StoreError};
use autometrics::autometrics;
use domain::{Channel, GatewayName};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Sql, lasting, millis, parsed};

/// The gateways that the operator has drained, their channels, and what the processes say of their
/// gateways.
#[derive(Debug, Clone)]
pub struct SqlGateways {
    database: Database,
}

/// The report of a process on one of its gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayReport {
    pub gateway: GatewayName,
    pub provider: String,
    /// One word, such as `open`.
    pub state: String,
    /// The reason why the process does not call the gateway, or empty. It contains no text of the gateway.
    pub reason: String,
    /// Calls that have not ended.
    pub in_flight: u64,
    /// Calls of the last minutes that the gateway accepted.
    pub accepted: u64,
    /// Calls of the last minutes that the gateway surely did not accept.
    pub refused: u64,
    /// Calls of the last minutes that the gateway may have accepted.
    pub unclear: u64,
}

/// A report, and the process that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedGateway {
    pub process: String,
    pub report: GatewayReport,
    /// The time since the report.
    pub age: Duration,
}

impl SqlGateways {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Returns the drained gateways.
    #[autometrics(struct_name = "SqlGateways")]
    pub async fn drained(&self) -> Result<BTreeSet<GatewayName>, StoreError> {
        let rows = self
            .database
            .readable_rows(&DRAINED, self.database.parameters(), Drained::name)
            .await?;
        Ok(rows.into_iter().collect())
    }

    /// Drains a gateway for all processes. Returns whether it was not drained before.
    #[autometrics(struct_name = "SqlGateways")]
    pub async fn drain(&self, gateway: &GatewayName) -> Result<bool, StoreError> {
        let parameters = self.database.parameters().with("gateway", gateway.as_str().to_owned());
        Ok(self.database.execute(&DRAIN, parameters).await? > 0)
    }

    /// Ends the drain of a gateway for all processes. Returns whether it was drained before.
    #[autometrics(struct_name = "SqlGateways")]
    pub async fn undrain(&self, gateway: &GatewayName) -> Result<bool, StoreError> {
        let parameters = self.database.parameters().with("gateway", gateway.as_str().to_owned());
        Ok(self.database.execute(&UNDRAIN, parameters).await? > 0)
    }

    /// Stores the channels of gateways. They are read for calls of the past, too, so a gateway must be
    /// stored before its first call.
    #[autometrics(struct_name = "SqlGateways")]
    pub async fn name_channels(
        &self,
        channels: &[(GatewayName, Channel)],
    ) -> Result<(), StoreError> {
        let parameters = self.database.parameters().rows("new", channels.iter(), |new| {
            new.column("gateway", |(gateway, _)| gateway.as_str().to_owned())
                .column("channel", |(_, channel)| channel.as_str().to_owned())
        });
        self.database.execute(&NAME_CHANNELS, parameters).await?;
        Ok(())
    }

    /// Returns what was spent today, by gateway and by the scope of the limit, in millionths.
    #[autometrics(struct_name = "SqlGateways")]
    pub async fn spent_today(&self) -> Result<Spent, StoreError> {
        let rows =
            self.database.readable_rows(&SPENT_TODAY, self.database.parameters(), SpentRow::read);
        let mut spent = Spent::new();
        for (gateway, scope, amount) in rows.await? {
            spent.entry(gateway).or_default().insert(scope, amount);
        }
        Ok(spent)
    }

    /// Stores what `process` says of its gateways. What it said of other gateways stays.
    #[autometrics(struct_name = "SqlGateways")]
    pub async fn report(&self, process: &str, reports: &[GatewayReport]) -> Result<(), StoreError> {
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let parameters = self.database.parameters().with("process", process.to_owned()).rows(
            "new",
            reports.iter(),
            |new| {
                new.column("gateway", |it| it.gateway.as_str().to_owned())
                    .column("provider", |it| it.provider.clone())
                    .column("state", |it| it.state.clone())
                    .column("reason", |it| it.reason.clone())
                    .column("in_flight", |it| count(it.in_flight))
                    .column("accepted", |it| count(it.accepted))
                    .column("refused", |it| count(it.refused))
                    .column("unclear", |it| count(it.unclear))
            },
        );
        self.database.execute(&REPORT, parameters).await?;
        Ok(())
    }

    /// Deletes what `process` said of its gateways.
    #[autometrics(struct_name = "SqlGateways")]
    pub async fn withdraw(&self, process: &str) -> Result<(), StoreError> {
        let parameters = self.database.parameters().with("process", process.to_owned());
        self.database.execute(&WITHDRAW, parameters).await?;
        Ok(())
    }

    /// Returns what processes have said within `period`, by gateway and process.
    #[autometrics(struct_name = "SqlGateways")]
    pub async fn reported(&self, period: Duration) -> Result<Vec<ReportedGateway>, StoreError> {
        let parameters = self.database.parameters().with("period", millis(period));
        Ok(self.database.readable_rows(&REPORTED, parameters, Row::reported).await?)
    }
}

static DRAINED: Sql = Sql::new("SELECT gateway FROM gateway_control");

static DRAIN: Sql = Sql::new(
    "
INSERT INTO gateway_control (gateway, drained_at)
VALUES (:gateway, {now})
ON CONFLICT (gateway) DO NOTHING",
);

static UNDRAIN: Sql = Sql::new("DELETE FROM gateway_control WHERE gateway = :gateway");

// In one order, so that two statements do not wait for each other.
static NAME_CHANNELS: Sql = Sql::new(
    "
INSERT INTO gateway_channel (gateway, channel)
SELECT gateway, channel
FROM :new
-- SQLite would take ON for a part of the FROM
WHERE true
ORDER BY gateway
ON CONFLICT (gateway) DO UPDATE SET channel = excluded.channel
WHERE gateway_channel.channel <> excluded.channel",
);

static SPENT_TODAY: Sql = Sql::pair(
    "
SELECT gateway, scope, spent
FROM gateway_spending
WHERE day = floor(extract(epoch FROM now()) / 86400)::integer",
    "
SELECT gateway, scope, spent
FROM gateway_spending
WHERE day = {now} / 86400000",
);

static REPORT: Sql = Sql::new(
    "
INSERT INTO gateway_state (gateway, process, provider, state, reason, in_flight, accepted, refused,
    unclear, reported_at)
SELECT gateway, :process, provider, state, reason, in_flight, accepted, refused, unclear, {now}
FROM :new
-- SQLite would take ON for a part of the FROM
WHERE true
ON CONFLICT (gateway, process) DO UPDATE SET
    provider = excluded.provider, state = excluded.state, reason = excluded.reason,
    in_flight = excluded.in_flight, accepted = excluded.accepted, refused = excluded.refused,
    unclear = excluded.unclear, reported_at = excluded.reported_at",
);

static WITHDRAW: Sql = Sql::new("DELETE FROM gateway_state WHERE process = :process");

static REPORTED: Sql = Sql::new(
    "
SELECT gateway, process, provider, state, reason, in_flight, accepted, refused, unclear,
    {millis({now} - reported_at)} AS age
FROM gateway_state
WHERE reported_at > {now} - {duration(:period)}
ORDER BY gateway, process",
);

#[derive(FromQueryResult)]
struct Drained {
    gateway: String,
}

impl Drained {
    fn name(self) -> Result<GatewayName, DatabaseError> {
        parsed(&self.gateway, "the name of a gateway")
    }
}

#[derive(FromQueryResult)]
struct SpentRow {
    gateway: String,
    scope: String,
    spent: i64,
}

impl SpentRow {
    fn read(self) -> Result<(GatewayName, String, u64), DatabaseError> {
        let gateway = parsed(&self.gateway, "the name of a gateway")?;
        Ok((gateway, self.scope, u64::try_from(self.spent).unwrap_or(0)))
    }
}

#[derive(FromQueryResult)]
struct Row {
    gateway: String,
    process: String,
    provider: String,
    state: String,
    reason: String,
    in_flight: i64,
    accepted: i64,
    refused: i64,
    unclear: i64,
    age: i64,
}

impl Row {
    fn reported(self) -> Result<ReportedGateway, DatabaseError> {
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let report = GatewayReport {
            gateway: parsed(&self.gateway, "the name of a gateway")?,
            provider: self.provider,
            state: self.state,
            reason: self.reason,
            in_flight: count(self.in_flight),
            accepted: count(self.accepted),
            refused: count(self.refused),
            unclear: count(self.unclear),
        };
        Ok(ReportedGateway { process: self.process, report, age: lasting(self.age) })
    }
}
