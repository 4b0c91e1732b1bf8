use std::time::Duration;

use application::ports::{
    FactorChange, GatewayHealth, Measured, Minute, SampledMessage, StoreError, StoredFactor,
};
use autometrics::autometrics;
use domain::{Factor, HealthCounts, RegionalGateway};
use sea_orm::FromQueryResult;
use uuid::Uuid;

use crate::database::{Database, DatabaseError, Fragment, Sql, lasting, millis, parsed};

/// What becomes of messages, by gateway, and the factors that follow from it.
#[derive(Debug, Clone)]
pub struct SqlGatewayHealth {
    database: Database,
}

impl SqlGatewayHealth {
    pub fn new(database: Database) -> Self {
        Self { database }
    }
}

impl GatewayHealth for SqlGatewayHealth {
    #[autometrics(struct_name = "SqlGatewayHealth")]
    async fn claim(&self, after: Duration) -> Result<Option<Minute>, StoreError> {
        let parameters = self.database.parameters().with("after", millis(after));
        let claimed: Option<Claimed> = self.database.row(&CLAIM, parameters).await?;
        Ok(claimed.map(|it| minute(it.minute)))
    }

    #[autometrics(struct_name = "SqlGatewayHealth")]
    async fn sample(
        &self,
        minute: Minute,
        in_time: Duration,
        limit: u32,
    ) -> Result<Vec<SampledMessage>, StoreError> {
        let parameters = self
            .database
            .parameters()
            .id("first", first_id(minute))
            .id("behind", first_id(Minute(minute.0 + 1)))
            .with("in_time", millis(in_time))
            .with("limit", i64::from(limit));
        Ok(self.database.readable_rows(&SAMPLE, parameters, SampleRow::message).await?)
    }

    #[autometrics(struct_name = "SqlGatewayHealth")]
    async fn record(&self, measured: &[Measured]) -> Result<(), StoreError> {
        let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let parameters = self.database.parameters().rows("new", measured.iter(), |new| {
            new.column("minute", |it| i64::try_from(it.minute.0).unwrap_or(i64::MAX))
                .column("gateway", |it| it.of.gateway.as_str().to_owned())
                .column("region", |it| region(&it.of).to_owned())
                .column("sent", |it| count(it.counts.sent))
                .column("reported", |it| count(it.counts.reported))
                .column("in_time", |it| count(it.counts.in_time))
                .column("approved", |it| count(it.counts.approved))
        });
        self.database.execute(&RECORD, parameters).await?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlGatewayHealth")]
    async fn measured(&self, period: Duration) -> Result<Vec<Measured>, StoreError> {
        let parameters = self.database.parameters().with("period", millis(period));
        Ok(self.database.readable_rows(&MEASURED, parameters, MeasuredRow::measured).await?)
    }

    #[autometrics(struct_name = "SqlGatewayHealth")]
    async fn factors(&self) -> Result<Vec<StoredFactor>, StoreError> {
        let parameters = self.database.parameters();
        Ok(self.database.readable_rows(&FACTORS, parameters, FactorRow::stored).await?)
    }

    #[autometrics(struct_name = "SqlGatewayHealth")]
    async fn change(&self, change: &FactorChange, pause: Duration) -> Result<bool, StoreError> {
        let FactorChange { of, from, to } = change;
        let parameters = self
            .database
            .parameters()
            .with("gateway", of.gateway.as_str().to_owned())
            .with("region", region(of).to_owned())
            .with("from", i32::from(from.percent()))
            .with("to", i32::from(to.percent()))
            .with("pause", millis(pause));
        Ok(self.database.execute(&CHANGE, parameters).await? > 0)
    }
}

/// Returns the smallest id of a minute. The first 48 bits of an id are milliseconds since 1970.
fn first_id(minute: Minute) -> Uuid {
    Uuid::from_u128((u128::from(minute.0) * 60_000) << 80)
}

fn minute(number: i64) -> Minute {
    Minute(u64::try_from(number).unwrap_or(0))
}

fn region(of: &RegionalGateway) -> &str {
    of.region.as_ref().map_or("", domain::Region::as_str)
}

fn regional(gateway: &str, region: &str) -> Result<RegionalGateway, DatabaseError> {
    let region = (!region.is_empty()).then(|| parsed(region, "a region")).transpose()?;
    Ok(RegionalGateway { gateway: parsed(gateway, "the name of a gateway")?, region })
}

/// The number of the minute in which a time lies.
const MINUTE: Fragment = Fragment::pair(
    "minute",
    "floor(extract(epoch FROM {argument}) / 60)::bigint",
    "(({argument}) / 60000)",
);

static CLAIM: Sql = Sql::with(&[MINUTE], CLAIM_TEXT, CLAIM_TEXT);

const CLAIM_TEXT: &str = "
INSERT INTO gateway_sample (minute, gateway, region, sent, reported, in_time, approved)
SELECT {minute({now} - {duration(:after)})} - 1, '', '', 0, 0, 0, 0
-- SQLite would take ON for a part of the FROM
WHERE true
ON CONFLICT (minute, gateway, region) DO NOTHING
RETURNING minute";

// The limit is on the messages that are read, so that a minute in which everything failed costs no
// more. The ids of the messages of a verification differ in their last byte.
static SAMPLE: Sql = Sql::pair(
    "
SELECT coalesce(message.gateway, 'default') AS gateway, message.phone, message.reported,
    message.in_time, coalesce(verification.approved, false) AS approved
FROM (
    SELECT message_id, gateway, phone, state, maybe_taken,
        delivered_at IS NOT NULL OR undelivered_at IS NOT NULL AS reported,
        coalesce(delivered_at - ended_at <= {duration(:in_time)}, false) AS in_time
    FROM delivery
    WHERE message_id >= :first AND message_id < :behind
    ORDER BY message_id
    LIMIT :limit
) AS message
LEFT JOIN LATERAL (
    SELECT status = 'approved' AND sends = 1 AS approved
    FROM verification
    WHERE id = (left(message.message_id::text, 34) || '00')::uuid
    OFFSET 0
) AS verification ON true
WHERE message.state = 'sent' AND message.maybe_taken IS NULL
  AND right(message.message_id::text, 2) = '01'",
    "
SELECT coalesce(message.gateway, 'default') AS gateway, message.phone, message.reported,
    message.in_time,
    coalesce(verification.status = 'approved' AND verification.sends = 1, false) AS approved
FROM (
    SELECT message_id, gateway, phone, state, maybe_taken,
        delivered_at IS NOT NULL OR undelivered_at IS NOT NULL AS reported,
        coalesce(delivered_at - ended_at <= {duration(:in_time)}, false) AS in_time
    FROM delivery
    WHERE message_id >= :first AND message_id < :behind
    ORDER BY message_id
    LIMIT :limit
) AS message
LEFT JOIN verification ON verification.id = substr(message.message_id, 1, 34) || '00'
WHERE message.state = 'sent' AND message.maybe_taken IS NULL
  AND substr(message.message_id, 35) = '01'",
);

static RECORD: Sql = Sql::new(
    "
INSERT INTO gateway_sample (minute, gateway, region, sent, reported, in_time, approved)
SELECT minute, gateway, region, sent, reported, in_time, approved
FROM :new
WHERE true
ON CONFLICT (minute, gateway, region) DO NOTHING",
);

static MEASURED: Sql = Sql::with(&[MINUTE], MEASURED_TEXT, MEASURED_TEXT);

const MEASURED_TEXT: &str = "
SELECT minute, gateway, region, sent, reported, in_time, approved
FROM gateway_sample
WHERE minute >= {minute({now} - {duration(:period)})} AND gateway <> ''
ORDER BY minute, gateway, region";

static FACTORS: Sql = Sql::with(&[MINUTE], FACTORS_TEXT, FACTORS_TEXT);

const FACTORS_TEXT: &str = "
SELECT gateway, region, percent, {millis({now} - changed_at)} AS age,
    {minute(changed_at)} + 1 AS since
FROM gateway_factor
ORDER BY gateway, region";

// A new row is a change from the full factor.
static CHANGE: Sql = Sql::new(
    "
INSERT INTO gateway_factor (gateway, region, percent, changed_at)
VALUES (:gateway, :region, :to, {now})
ON CONFLICT (gateway, region) DO UPDATE
SET percent = excluded.percent, changed_at = excluded.changed_at
WHERE gateway_factor.percent = :from
  AND gateway_factor.changed_at <= {now} - {duration(:pause)}",
);

#[derive(FromQueryResult)]
struct Claimed {
    minute: i64,
}

#[derive(FromQueryResult)]
struct SampleRow {
    gateway: String,
    phone: String,
    reported: bool,
    in_time: bool,
    approved: bool,
}

impl SampleRow {
    fn message(self) -> Result<SampledMessage, DatabaseError> {
        Ok(SampledMessage {
            gateway: parsed(&self.gateway, "the name of a gateway")?,
            phone: parsed(&self.phone, "a phone")?,
            reported: self.reported,
            in_time: self.in_time,
            approved: self.approved,
        })
    }
}

#[derive(FromQueryResult)]
struct MeasuredRow {
    minute: i64,
    gateway: String,
    region: String,
    sent: i32,
    reported: i32,
    in_time: i32,
    approved: i32,
}

impl MeasuredRow {
    fn measured(self) -> Result<Measured, DatabaseError> {
        let count = |number: i32| u32::try_from(number).unwrap_or(0);
        let counts = HealthCounts {
            sent: count(self.sent),
            reported: count(self.reported),
            in_time: count(self.in_time),
            approved: count(self.approved),
        };
        let of = regional(&self.gateway, &self.region)?;
        Ok(Measured { minute: minute(self.minute), of, counts })
    }
}

#[derive(FromQueryResult)]
struct FactorRow {
    gateway: String,
    region: String,
    percent: i32,
    age: i64,
    since: i64,
}

impl FactorRow {
    fn stored(self) -> Result<StoredFactor, DatabaseError> {
        let percent = u8::try_from(self.percent).ok().and_then(Factor::from_percent);
        Ok(StoredFactor {
            of: regional(&self.gateway, &self.region)?,
            factor: percent.ok_or_else(|| DatabaseError::not("a factor"))?,
            age: lasting(self.age),
            since: minute(self.since),
        })
    }
}
