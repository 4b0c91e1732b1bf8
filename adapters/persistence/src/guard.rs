mod sql;

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use application::ports::{
    GuardCounts, GuardDecision, GuardDelta, GuardKey, GuardRecords, GuardTotal, PastVerification,
    StoreError, StoredDecision,
};
use autometrics::autometrics;
use domain::{GuardMode, Rolling, VerificationId};
use sea_orm::{DatabaseConnection, FromQueryResult};
use serde_json::json;
use uuid::Uuid;

use crate::database::{
    Database, DatabaseError, Parameters, begin, clock, lasting, millis, parsed, since_1970, time,
};

/// Stores the sends and approvals that all processes counted, and the decisions of the guard.
#[derive(Debug, Clone)]
pub struct SqlGuard {
    database: Database,
}

/// The decisions of one rule about one key, in order. They share one row, because a flood causes a
/// decision for each request.
#[derive(Debug)]
struct Run<'a> {
    first: &'a GuardDecision,
    others: Vec<&'a GuardDecision>,
}

/// The most decisions after the first one in a row.
const OTHERS: usize = 999;

impl SqlGuard {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Returns the phones of the decisions that are recorded as events.
    fn blocked<'a>(
        &self,
        decisions: &'a [GuardDecision],
    ) -> impl Iterator<Item = String> + use<'a> {
        let recorded = self.database.events().are_recorded();
        decisions
            .iter()
            .filter(move |it| recorded && it.rule.mode == GuardMode::Enforce)
            .map(|decision| decision.phone.clone())
    }

    /// Runs `add` in one statement.
    async fn add_postgres(
        &self,
        moved: &[GuardDelta],
        decisions: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<TotalRow>, DatabaseError> {
        let parameters = moved_rows(self.database.parameters(), moved, window);
        let parameters =
            run_rows(parameters, &Run::all(decisions)).list("blocked", self.blocked(decisions));
        self.database.rows(&sql::ADD_POSTGRES, parameters).await
    }

    /// Runs `add` in SQLite, where a statement can write to only one table.
    async fn add_sqlite(
        &self,
        connection: DatabaseConnection,
        moved: &[GuardDelta],
        decisions: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<TotalRow>, DatabaseError> {
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        let parameters = || self.database.parameters().with("now", now);
        let totals =
            transaction.rows(&sql::ADD_SQLITE, moved_rows(parameters(), moved, window)).await?;
        transaction
            .execute(&sql::DECIDE_SQLITE, run_rows(parameters(), &Run::all(decisions)))
            .await?;
        let blocked = parameters().list("blocked", self.blocked(decisions));
        transaction.execute(&sql::RECORD_SQLITE, blocked).await?;
        transaction.commit().await?;
        Ok(totals)
    }
}

impl<'a> Run<'a> {
    fn all(decisions: &'a [GuardDecision]) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        let mut latest = HashMap::new();
        for decision in decisions {
            let place = latest.entry((decision.rule, &decision.key)).or_insert(runs.len());
            match runs.get_mut(*place) {
                Some(run) if run.others.len() < OTHERS => run.others.push(decision),
                _ => {
                    *place = runs.len();
                    runs.push(Self { first: decision, others: Vec::new() });
                }
            }
        }
        runs
    }

    /// Returns the decisions after the first one in their stored form: a list of
    /// `[sends, approvals, verification]`, or an empty text.
    fn others(&self) -> String {
        let others = self.others.iter().map(|it| {
            json!([it.sends, it.approvals, it.verification.map(|id| id.as_uuid().to_string())])
        });
        if self.others.is_empty() {
            String::new()
        } else {
            others.collect::<serde_json::Value>().to_string()
        }
    }
}

fn moved_rows(parameters: Parameters, moved: &[GuardDelta], window: Duration) -> Parameters {
    let parameters = parameters.rows("moved", moved.iter(), |moved| {
        moved
            .column("scope", |it| it.key.scope.as_str().to_owned())
            .column("key", |it| it.key.key.clone())
            .column("sends", |it| it.sends.cast_signed())
            .column("approvals", |it| it.approvals.cast_signed())
    });
    parameters.with("window", millis(window))
}

fn run_rows(parameters: Parameters, runs: &[Run<'_>]) -> Parameters {
    parameters.rows("run", runs.iter(), |run| {
        run.column("rule", |it| it.first.rule.to_string())
            .column("mode", |it| it.first.rule.mode.as_str().to_owned())
            .column("scope", |it| it.first.scope.as_str().to_owned())
            .column("key", |it| it.first.key.clone())
            .column("sends", |it| it.first.sends.cast_signed())
            .column("approvals", |it| it.first.approvals.cast_signed())
            .column("verification", |it| {
                it.first.verification.map_or(Uuid::nil(), VerificationId::as_uuid)
            })
            .column("others", Run::others)
    })
}

impl GuardCounts for SqlGuard {
    #[autometrics(struct_name = "SqlGuard")]
    async fn add(
        &self,
        moved: &[GuardDelta],
        decisions: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<GuardTotal>, StoreError> {
        let rows = if self.database.is_postgres() {
            self.add_postgres(moved, decisions, window).await?
        } else {
            let step = async |it| self.add_sqlite(it, moved, decisions, window).await;
            self.database.step(step).await?
        };
        Ok(rows.into_iter().map(TotalRow::total).collect::<Result<_, _>>()?)
    }
}

impl GuardRecords for SqlGuard {
    #[autometrics(struct_name = "SqlGuard")]
    async fn past(
        &self,
        since: Duration,
        after: Option<(SystemTime, VerificationId)>,
        limit: usize,
    ) -> Result<Vec<PastVerification>, StoreError> {
        let (at, id) = after.map_or((0, VerificationId::NIL), |(at, id)| (since_1970(at), id));
        let parameters = self
            .database
            .parameters()
            .with("since", millis(since))
            .with("after", at)
            .id("after_id", id.as_uuid())
            .with("limit", i64::try_from(limit).unwrap_or(i64::MAX));
        let rows: Vec<PastRow> = self.database.rows(&sql::PAST, parameters).await?;
        Ok(rows.into_iter().map(PastRow::verification).collect::<Result<_, _>>()?)
    }

    #[autometrics(struct_name = "SqlGuard")]
    async fn decisions(
        &self,
        since: Duration,
        limit: usize,
    ) -> Result<Vec<StoredDecision>, StoreError> {
        let parameters = self
            .database
            .parameters()
            .with("since", millis(since))
            .with("limit", i64::try_from(limit).unwrap_or(i64::MAX));
        let rows: Vec<DecisionRow> = self.database.rows(&sql::DECISIONS, parameters).await?;
        Ok(rows.into_iter().map(DecisionRow::decision).collect::<Result<_, _>>()?)
    }

    #[autometrics(struct_name = "SqlGuard")]
    async fn allow(&self, keys: &[GuardKey], period: Duration) -> Result<(), StoreError> {
        let parameters = self.database.parameters().with("period", millis(period));
        let parameters = parameters.rows("allowed", keys.iter(), |allowed| {
            allowed
                .column("scope", |it| it.scope.as_str().to_owned())
                .column("key", |it| it.key.clone())
        });
        self.database.execute(&sql::ALLOW, parameters).await?;
        Ok(())
    }
}

#[derive(Debug, FromQueryResult)]
struct TotalRow {
    scope: String,
    key: String,
    sends: i64,
    approvals: i64,
    sends_before: i64,
    approvals_before: i64,
    age: i64,
    day_sends: i64,
    day_approvals: i64,
    day_sends_before: i64,
    day_approvals_before: i64,
    day_age: i64,
    allowed: bool,
}

#[derive(FromQueryResult)]
struct PastRow {
    id: String,
    phone: String,
    region: Option<String>,
    sends: i32,
    created_at: i64,
    approved_at: Option<i64>,
}

#[derive(FromQueryResult)]
struct DecisionRow {
    decided_at: i64,
    rule: String,
    key: String,
    sends: i64,
    approvals: i64,
    verification: Option<String>,
}

impl TotalRow {
    fn total(self) -> Result<GuardTotal, DatabaseError> {
        Ok(GuardTotal {
            key: GuardKey { scope: parsed(&self.scope, "a scope")?, key: self.key },
            window: Rolling {
                sends: number(self.sends),
                approvals: number(self.approvals),
                sends_before: number(self.sends_before),
                approvals_before: number(self.approvals_before),
                age: lasting(self.age),
            },
            day: Rolling {
                sends: number(self.day_sends),
                approvals: number(self.day_approvals),
                sends_before: number(self.day_sends_before),
                approvals_before: number(self.day_approvals_before),
                age: lasting(self.day_age),
            },
            allowed: self.allowed,
        })
    }
}

impl PastRow {
    fn verification(self) -> Result<PastVerification, DatabaseError> {
        Ok(PastVerification {
            id: verification_id(&self.id)?,
            phone: parsed(&self.phone, "a phone")?,
            region: self.region.map(|region| parsed(&region, "a region")).transpose()?,
            sends: u8::try_from(self.sends).unwrap_or(u8::MAX),
            created_at: time(self.created_at),
            approved_at: self.approved_at.map(time),
        })
    }
}

impl DecisionRow {
    fn decision(self) -> Result<StoredDecision, DatabaseError> {
        Ok(StoredDecision {
            decided_at: time(self.decided_at),
            rule: self.rule,
            key: self.key,
            sends: number(self.sends),
            approvals: number(self.approvals),
            verification: self.verification.map(|id| verification_id(&id)).transpose()?,
        })
    }
}

fn number(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}

fn verification_id(text: &str) -> Result<VerificationId, DatabaseError> {
    parsed(text, "an id").map(VerificationId::from_uuid)
}
