mod checks;
mod sql;

use std::{collections::BTreeMap, time::Duration};

use application::ports::{
    AnswerClaim, Approval, Attempt, CheckOutcome, CodeSecret, Event, EventKind, History,
    Housekeeping, NewTest, NewVerification, Newest, Receipt, Resend, Resent, StoreError, Target,
    Verification, Verifications, Violation,
};
use autometrics::autometrics;
use domain::{
    ATTEMPTS, CodeHash, Counter, KeyId, MessageId, Metadata, Origin, PhoneNumber, Policy, Seed,
    VerificationId, VerificationStatus,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Value};
use serde_json::json;
use uuid::Uuid;

use self::checks::Checks;
pub(crate) use self::sql::verification_columns;
use crate::{
    database::{Database, Told, Transaction, begin, clock, hex, lasting, millis, parsed, time},
    idempotency::done_under,
    limits::{COUNT_SQLITE, Counters, PhoneWindows, counter_row, violations, window_params},
    outbox::{COUNT_ON_PHONES, PHONES, STORE, code_length},
};

/// Verifications after their first message.
#[derive(Debug, Clone)]
pub struct SqlVerifications {
    database: Database,
    checks: Checks,
    events: bool,
}

/// What became of one try to send again.
#[derive(Debug)]
enum Resending {
    Sent(Box<Verification>),
    /// It is not what it was taken for.
    Changed,
    PhoneFull,
    /// A counter has no room.
    Over,
}

/// What a guess is counted under in SQLite, and what it is tried against.
#[derive(Debug)]
struct Guessed {
    found: Option<Found>,
    counter: String,
    /// Whether the attempt may be made if this has room; otherwise it is counted for the work only.
    counts: bool,
}

/// What is tried in SQLite, as it stands before.
#[derive(Debug)]
struct Found {
    id: VerificationId,
    phone: String,
    origin: Origin,
    exhausted: bool,
    is_right: bool,
}

/// Tries of what others can change in between.
const TRIES: usize = 3;

impl SqlVerifications {
    pub fn new(database: Database) -> Self {
        Self { checks: Checks::new(database.clone(), false), database, events: false }
    }

    /// Whether others are told of what happens.
    #[must_use]
    pub fn with_events(self, events: bool) -> Self {
        Self { checks: Checks::new(self.database.clone(), events), events, ..self }
    }

    async fn row(&self, id: VerificationId) -> Result<Option<QueryResult>, DbErr> {
        let rows = self.database.rows(sql::FIND, vec![self.database.id(id.as_uuid())]).await?;
        Ok(rows.into_iter().next())
    }

    async fn told(&self, id: VerificationId) -> Result<Option<History>, DbErr> {
        let Some(row) = self.row(id).await? else { return Ok(None) };
        let verification = read(&row)?;
        let messages = self.messages(id, verification.sends);
        let sequence: i64 = row.try_get("", "sequence")?;
        let rows = self.database.rows(sql::MESSAGES, vec![sequence.into(), messages]).await?;
        let events = events(&verification, &rows)?;
        Ok(Some(History { verification, events }))
    }

    /// The ids of a verification's messages.
    fn messages(&self, id: VerificationId, sends: u8) -> Value {
        let messages = (1..=sends).map(|send| id.message(send).as_uuid());
        if self.database.is_postgres() {
            messages.collect::<Vec<Uuid>>().into()
        } else {
            json!(messages.map(|id| id.to_string()).collect::<Vec<_>>()).to_string().into()
        }
    }

    /// One statement of PostgreSQL.
    async fn run(&self, sql: &str, values: Vec<Value>) -> Result<Vec<QueryResult>, DbErr> {
        let statement = self.database.as_written(sql, values);
        self.database.step(async |it| it.query_all_raw(statement).await).await
    }

    /// One statement of a transaction in SQLite.
    async fn run_in(
        &self,
        transaction: &Transaction,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Vec<QueryResult>, DbErr> {
        transaction.query_all_raw(self.database.as_written(sql, values)).await
    }

    async fn tell_in(
        &self,
        transaction: &Transaction,
        kind: EventKind,
        id: VerificationId,
        now: i64,
    ) -> Result<(), DbErr> {
        if self.events {
            let values = vec![kind.as_str().into(), self.database.id(id.as_uuid()), now.into()];
            self.run_in(transaction, sql::TELL, values).await?;
        }
        Ok(())
    }

    async fn note_in(
        &self,
        transaction: &Transaction,
        id: VerificationId,
        claim: Option<&AnswerClaim>,
    ) -> Result<(), DbErr> {
        if claim.is_some() {
            let [key, first] = done_under(claim);
            let values = vec![self.database.id(id.as_uuid()), key, first];
            self.run_in(transaction, sql::NOTE, values).await?;
        }
        Ok(())
    }

    async fn try_resend(&self, again: &Resend) -> Result<Resending, DbErr> {
        if self.database.is_postgres() {
            self.database.step(async |it| self.resend_postgres(it, again).await).await
        } else {
            self.database.step(async |it| self.resend_sqlite(it, again).await).await
        }
    }

    async fn resend_postgres(
        &self,
        connection: DatabaseConnection,
        again: &Resend,
    ) -> Result<Resending, DbErr> {
        let [code_hash, seed, pepper] = new_secret(again);
        let mut values = vec![
            again.id.as_uuid().into(),
            i16::from(again.sends).into(),
            i16::from(ATTEMPTS).into(),
            millis(again.wait).into(),
            again.message.id.as_uuid().into(),
            again.message.code.as_text().into_owned().into(),
            again.trace.as_str().into(),
            code_hash.into(),
            seed.into(),
            pepper.into(),
        ];
        for (quota, period) in window_params(&again.phone_limits) {
            values.extend([Value::from(quota), period.into()]);
        }
        let counters = || again.extra.iter();
        let names = counters().map(|it| it.policy.name.as_str().to_owned());
        let quotas = counters().map(|it| it.policy.window.quota.cast_signed());
        values.extend([
            Value::from(names.collect::<Vec<_>>()),
            counters().map(|it| it.key.clone()).collect::<Vec<_>>().into(),
            quotas.collect::<Vec<i32>>().into(),
            counters().map(|it| millis(it.policy.window.period)).collect::<Vec<i64>>().into(),
        ]);
        values.extend(done_under(again.claim.as_ref()));

        let transaction = begin(&connection).await?;
        let statement = self.database.as_written(sql::RESEND_POSTGRES, values);
        let row = transaction.query_one_raw(statement).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("what was tried".to_owned()))?;
        let tried = if !row.try_get::<bool>("", "found")? {
            Resending::Changed
        } else if !row.try_get::<bool>("", "allowed")? {
            Resending::PhoneFull
        } else if !row.try_get::<bool>("", "holds")? {
            Resending::Over
        } else {
            read_if_any(&row)?.map_or(Resending::Changed, |sent| Resending::Sent(Box::new(sent)))
        };
        finish(transaction, tried).await
    }

    async fn resend_sqlite(
        &self,
        connection: DatabaseConnection,
        again: &Resend,
    ) -> Result<Resending, DbErr> {
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        let id = self.database.id(again.id.as_uuid());
        let [key, first] = done_under(again.claim.as_ref());
        let values = vec![
            id.clone(),
            again.sends.into(),
            ATTEMPTS.into(),
            millis(again.wait).into(),
            now.into(),
            key,
            first,
        ];
        let rows = self.run_in(&transaction, sql::RESENDABLE, values).await?;
        let Some(target) = rows.first() else {
            return finish(transaction, Resending::Changed).await;
        };
        let phone: String = target.try_get("", "phone")?;
        let ttl: i64 = target.try_get("", "ttl")?;
        let is_api: bool = target.try_get("", "is_api")?;

        let [(quota_1, period_1), (quota_2, period_2), (quota_3, period_3)] =
            window_params(&again.phone_limits);
        let uuid = again.id.as_uuid().to_string();
        let wanted = json!([[
            phone, uuid, ttl, 0, 1, quota_1, period_1, quota_2, period_2, quota_3, period_3, is_api
        ]]);
        let values = vec![wanted.to_string().into(), now.into()];
        if self.run_in(&transaction, COUNT_ON_PHONES, values).await?.is_empty() {
            return finish(transaction, Resending::PhoneFull).await;
        }
        let counters: serde_json::Value = again.extra.iter().map(counter_row).collect();
        let values = vec![counters.to_string().into(), now.into()];
        for row in self.run_in(&transaction, COUNT_SQLITE, values).await? {
            if !row.try_get::<bool>("", "holds")? {
                return finish(transaction, Resending::Over).await;
            }
        }
        let message = json!([[
            again.message.id.to_string(),
            phone,
            again.message.code.as_text(),
            again.trace.as_str(),
            ttl
        ]]);
        let values = vec![message.to_string().into(), now.into()];
        let stored = self.run_in(&transaction, STORE, values).await?;
        let sequence: i64 =
            stored.first().ok_or(DbErr::RecordNotInserted)?.try_get("", "sequence")?;
        let [code_hash, seed, pepper] = new_secret(again);
        let values =
            vec![id, now.into(), sequence.into(), code_hash.into(), seed.into(), pepper.into()];
        let rows = self.run_in(&transaction, sql::SEND_AGAIN, values).await?;
        let sent = read(rows.first().ok_or(DbErr::RecordNotUpdated)?)?;
        self.note_in(&transaction, again.id, again.claim.as_ref()).await?;
        finish(transaction, Resending::Sent(Box::new(sent))).await
    }

    /// Why the phone of a verification refuses a send; nothing, if it does not any more.
    async fn phone_violations(&self, again: &Resend) -> Result<Vec<Violation>, DbErr> {
        let phones = vec![again.message.phone.as_str().to_owned()];
        let values = if self.database.is_postgres() {
            vec![phones.into()]
        } else {
            vec![json!(phones).to_string().into()]
        };
        let rows = self.database.rows(PHONES, values).await?;
        let windows = rows.first().map(PhoneWindows::read).transpose()?;
        Ok(windows.map(|it| it.violations(&again.phone_limits)).unwrap_or_default())
    }

    async fn check_sqlite(
        &self,
        connection: DatabaseConnection,
        attempt: &Attempt,
        guesses: &[Policy],
    ) -> Result<CheckOutcome, DbErr> {
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        let look = async |sql, key: Value, hashes: &[(KeyId, CodeHash)]| {
            let hashes = hashes.iter();
            let hashes =
                hashes.map(|(pepper, hash)| json!([pepper.as_str(), hex(hash.as_bytes())]));
            let hashes = hashes.collect::<serde_json::Value>().to_string();
            let values = vec![key, now.into(), ATTEMPTS.into(), hashes.into()];
            self.run_in(&transaction, sql, values).await
        };
        let targets = match &attempt.target {
            Target::Id(id) => {
                let key = self.database.id(id.as_uuid());
                let rows = look(sql::TARGET_BY_ID, key, &attempt.hashes).await?;
                let Some(row) = rows.first() else { return Ok(CheckOutcome::Unknown) };
                if let Some(untried) = read_untried(row)? {
                    return Ok(untried);
                }
                vec![Guessed::by_id(Found::read(row)?)]
            }
            Target::Newest { phone, of } => {
                let key = || Value::from(phone.as_str());
                let v1 = look(sql::TARGET_OF_V1, key(), &attempt.hashes).await?;
                let api = look(sql::TARGET_OF_API, key(), &attempt.api_hashes).await?;
                let [v1, api] = [v1, api].map(|rows| rows.first().map(Found::read).transpose());
                let (v1, api) = (v1?, api?);
                let id = |found: &Option<Found>| found.as_ref().map(|it| it.id);
                if (id(&v1), id(&api)) != (of.v1, of.api) {
                    return Ok(CheckOutcome::Changed);
                }
                Guessed::by_phone(phone, v1, api)
            }
        };
        let mut with_room = Vec::new();
        let mut over = Vec::new();
        for target in targets {
            let used = self.used_up_sqlite(&transaction, &target, guesses, now).await?;
            if used.is_empty() {
                with_room.push(target);
            } else if target.counts && over.is_empty() {
                over = used;
            }
        }
        if !with_room.iter().any(|target| target.counts) {
            return Ok(CheckOutcome::Limited(over));
        }
        let right = with_room.iter().position(Guessed::is_right);
        let tried = if let Some(right) = right {
            let found = with_room.swap_remove(right);
            self.approve_sqlite(&transaction, &found, guesses, attempt.claim.as_ref(), now).await?
        } else {
            let mut tried = CheckOutcome::Nothing;
            for target in &with_room {
                let wrong = self.guess_sqlite(&transaction, target, guesses, now).await?;
                if let (CheckOutcome::Nothing, Some(wrong)) = (&tried, wrong) {
                    tried = wrong;
                }
            }
            tried
        };
        transaction.commit().await?;
        Ok(tried)
    }

    /// The windows of a target that have no room.
    async fn used_up_sqlite(
        &self,
        transaction: &Transaction,
        target: &Guessed,
        guesses: &[Policy],
        now: i64,
    ) -> Result<Vec<Violation>, DbErr> {
        let values = vec![target.counter.as_str().into(), names(guesses), now.into()];
        violations(guesses, &self.run_in(transaction, sql::GUESSES, values).await?)
    }

    /// Counts a guess, and where there is something to guess, a wrong attempt at it.
    async fn guess_sqlite(
        &self,
        transaction: &Transaction,
        target: &Guessed,
        guesses: &[Policy],
        now: i64,
    ) -> Result<Option<CheckOutcome>, DbErr> {
        self.count_guess_sqlite(transaction, target, guesses, now).await?;
        let Some(found) = target.found.as_ref().filter(|found| !found.exhausted) else {
            return Ok(None);
        };
        let id = self.database.id(found.id.as_uuid());
        let rows = self.run_in(transaction, sql::COUNT_ATTEMPT, vec![id]).await?;
        let row = rows.first().ok_or(DbErr::RecordNotUpdated)?;
        read_wrong(row, row.try_get("", "attempts")?).map(Some)
    }

    async fn count_guess_sqlite(
        &self,
        transaction: &Transaction,
        target: &Guessed,
        guesses: &[Policy],
        now: i64,
    ) -> Result<(), DbErr> {
        let counters = guesses
            .iter()
            .map(|policy| Counter { policy: policy.clone(), key: target.counter.clone() });
        let counters: serde_json::Value = counters.map(|it| counter_row(&it)).collect();
        let values = vec![counters.to_string().into(), now.into()];
        self.run_in(transaction, COUNT_SQLITE, values).await?;
        Ok(())
    }

    /// Approves what a code is right for.
    async fn approve_sqlite(
        &self,
        transaction: &Transaction,
        target: &Guessed,
        guesses: &[Policy],
        claim: Option<&AnswerClaim>,
        now: i64,
    ) -> Result<CheckOutcome, DbErr> {
        let found = target.found.as_ref().ok_or(DbErr::RecordNotUpdated)?;
        self.count_guess_sqlite(transaction, target, guesses, now).await?;
        let id = self.database.id(found.id.as_uuid());
        self.run_in(transaction, sql::COUNT_ATTEMPT, vec![id.clone()]).await?;
        let values = vec![id.clone(), now.into()];
        let rows = self.run_in(transaction, sql::APPROVE, values).await?;
        let approval = read_approval(rows.first().ok_or(DbErr::RecordNotUpdated)?)?;
        let phone = Value::from(approval.phone.as_str());
        self.run_in(transaction, sql::CLEAR, vec![phone, id.clone()]).await?;
        let counter = Value::from(target.counter.as_str());
        self.run_in(transaction, sql::FORGIVE, vec![counter, names(guesses), id]).await?;
        self.tell_in(transaction, EventKind::Approved, found.id, now).await?;
        self.note_in(transaction, found.id, claim).await?;
        Ok(CheckOutcome::Right(approval))
    }

    async fn cancel_sqlite(
        &self,
        connection: DatabaseConnection,
        id: VerificationId,
    ) -> Result<(), DbErr> {
        let uuid = self.database.id(id.as_uuid());
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        let values = vec![uuid.clone(), now.into()];
        let rows = self.run_in(&transaction, sql::CANCEL, values).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let phone: String = row.try_get("", "phone")?;
        let sequence: i64 = row.try_get("", "sequence")?;
        let messages = self.messages(id, row.try_get("", "sends")?);
        for (sql, values) in [
            (sql::CLEAR, vec![phone.into(), uuid]),
            (sql::CANCEL_UNCLAIMED, vec![sequence.into(), now.into()]),
            (sql::CANCEL_UNCALLED, vec![messages, now.into()]),
        ] {
            self.run_in(&transaction, sql, values).await?;
        }
        self.tell_in(&transaction, EventKind::Canceled, id, now).await?;
        transaction.commit().await
    }

    async fn start_test_sqlite(
        &self,
        connection: DatabaseConnection,
        test: &NewTest,
        mut values: Vec<Value>,
    ) -> Result<i64, DbErr> {
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        let (id, ttl) = (self.database.id(test.id.as_uuid()), millis(test.ttl));
        let point = vec![test.phone.as_str().into(), id, ttl.into(), now.into()];
        self.run_in(&transaction, sql::POINT_TO, point).await?;
        values.push(now.into());
        self.run_in(&transaction, sql::CREATE_TEST, values).await?;
        self.tell_in(&transaction, EventKind::Created, test.id, now).await?;
        transaction.commit().await?;
        Ok(now)
    }

    async fn note_receipt_sqlite(
        &self,
        connection: DatabaseConnection,
        message: MessageId,
        receipt: Receipt,
    ) -> Result<bool, DbErr> {
        let id = self.database.id(message.as_uuid());
        let is_delivered = Value::from(receipt == Receipt::Delivered);
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        if self.events {
            let verification = self.database.id(VerificationId::of(message).as_uuid());
            let name = receipt.as_str().into();
            let values = vec![id.clone(), is_delivered.clone(), name, verification, now.into()];
            self.run_in(&transaction, sql::TELL_RECEIPT, values).await?;
        }
        let values = vec![id, is_delivered, now.into()];
        let statement = self.database.as_written(sql::NOTE_RECEIPT, values);
        let noted = transaction.execute_raw(statement).await?.rows_affected();
        transaction.commit().await?;
        Ok(noted > 0)
    }

    async fn expire_sqlite(&self, connection: DatabaseConnection) -> Result<u64, DbErr> {
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        if self.events {
            self.run_in(&transaction, sql::TELL_EXPIRED, vec![now.into()]).await?;
        }
        let statement = self.database.as_written(sql::EXPIRE, vec![now.into()]);
        let expired = transaction.execute_raw(statement).await?.rows_affected();
        transaction.commit().await?;
        Ok(expired)
    }
}

impl Verifications for SqlVerifications {
    #[autometrics(struct_name = "SqlVerifications")]
    async fn find(&self, id: VerificationId) -> Result<Option<Verification>, StoreError> {
        let row = self.row(id).await.map_err(Told)?;
        Ok(row.as_ref().map(read).transpose().map_err(Told)?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn history(&self, id: VerificationId) -> Result<Option<History>, StoreError> {
        Ok(self.told(id).await.map_err(Told)?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn resend(&self, again: Resend) -> Result<Resent, StoreError> {
        for _ in 0..TRIES {
            let violations = match self.try_resend(&again).await.map_err(Told)? {
                Resending::Sent(verification) => return Ok(Resent::Sent(verification)),
                Resending::Changed => return Ok(Resent::Changed),
                Resending::PhoneFull => self.phone_violations(&again).await.map_err(Told)?,
                Resending::Over => {
                    let counters = Counters::read(&self.database, again.extra.iter()).await;
                    counters.map_err(Told)?.violations(&again.extra)
                }
            };
            if !violations.is_empty() {
                return Ok(Resent::Limited(violations));
            }
            // The window has ended in between.
        }
        Err(StoreError::Full)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn newest(&self, phone: PhoneNumber) -> Result<Newest, StoreError> {
        let rows = self.database.rows(sql::NEWEST, vec![phone.as_str().into()]).await;
        let newest = rows.map_err(Told)?.first().map(read_newest).transpose().map_err(Told)?;
        Ok(newest.unwrap_or_default())
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn check(
        &self,
        attempt: Attempt,
        guesses: &[Policy],
    ) -> Result<CheckOutcome, StoreError> {
        if self.database.is_postgres() {
            return self.checks.check(attempt, guesses).await;
        }
        let step = async |it| self.check_sqlite(it, &attempt, guesses).await;
        Ok(self.database.step(step).await.map_err(Told)?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn cancel(&self, id: VerificationId) -> Result<Option<History>, StoreError> {
        if self.database.is_postgres() {
            let values = vec![id.as_uuid().into(), self.events.into()];
            self.run(sql::CANCEL_POSTGRES, values).await.map_err(Told)?;
        } else {
            let step = async |it| self.cancel_sqlite(it, id).await;
            self.database.step(step).await.map_err(Told)?;
        }
        Ok(self.told(id).await.map_err(Told)?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn start_test(&self, test: NewTest) -> Result<Verification, StoreError> {
        let NewVerification { origin, region, secret, template, metadata, api_key, .. } =
            &test.verification;
        let values = vec![
            self.database.id(test.id.as_uuid()),
            test.phone.as_str().into(),
            millis(test.ttl).into(),
            origin.as_str().into(),
            region.map(|region| region.as_str().to_owned()).into(),
            hex(secret.code_hash.as_bytes()).into(),
            hex(secret.seed.as_bytes()).into(),
            secret.pepper.as_str().into(),
            code_length(test.verification.code_length).into(),
            template.as_ref().map(|template| template.as_str().to_owned()).into(),
            metadata.as_ref().map(|metadata| metadata.as_str().to_owned()).into(),
            if self.database.is_postgres() {
                api_key.map(domain::ApiKeyId::as_uuid).into()
            } else {
                api_key.map(|id| id.as_uuid().to_string()).into()
            },
        ];
        let at = if self.database.is_postgres() {
            let values = [values, vec![self.events.into()]].concat();
            let rows = self.run(sql::START_TEST_POSTGRES, values).await.map_err(Told)?;
            let row = rows.first().ok_or(Told(DbErr::RecordNotInserted))?;
            row.try_get("", "created_at").map_err(Told)?
        } else {
            let step = async |it| self.start_test_sqlite(it, &test, values).await;
            self.database.step(step).await.map_err(Told)?
        };
        let NewTest { id, phone, ttl, verification } = test;
        Ok(Verification::begun(id, phone, ttl, &verification, time(at)))
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn note_receipt(&self, message: MessageId, receipt: Receipt) -> Result<bool, StoreError> {
        if !self.database.is_postgres() {
            let step = async |it| self.note_receipt_sqlite(it, message, receipt).await;
            return Ok(self.database.step(step).await.map_err(Told)?);
        }
        let values = vec![
            message.as_uuid().into(),
            (receipt == Receipt::Delivered).into(),
            self.events.into(),
            receipt.as_str().into(),
            VerificationId::of(message).as_uuid().into(),
        ];
        let rows = self.run(sql::NOTE_RECEIPT_POSTGRES, values).await.map_err(Told)?;
        let known = rows.first().map_or(Ok(false), |row| row.try_get("", "known"));
        Ok(known.map_err(Told)?)
    }
}

impl Housekeeping for SqlVerifications {
    #[autometrics(struct_name = "SqlVerifications")]
    async fn expire(&self) -> Result<u64, StoreError> {
        if !self.database.is_postgres() {
            let step = async |it| self.expire_sqlite(it).await;
            return Ok(self.database.step(step).await.map_err(Told)?);
        }
        let rows = self.run(sql::EXPIRE_POSTGRES, vec![self.events.into()]).await.map_err(Told)?;
        let expired = rows.first().map_or(Ok(0), |row| row.try_get::<i64>("", "expired"));
        Ok(expired.map_err(Told)?.unsigned_abs())
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn prune(&self, retention: Duration) -> Result<u64, StoreError> {
        let old = sql::PRUNE_OLD.map(|sql| (sql, vec![millis(retention).into()]));
        let over = sql::PRUNE_OVER.map(|sql| (sql, vec![]));
        let (mut pruned, mut failure) = (0, None);
        // One that takes too long must not keep the others from being pruned.
        for (sql, values) in old.into_iter().chain(over) {
            match self.database.execute(sql, values).await {
                Ok(rows) => pruned += rows,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) => Err(Told(error).into()),
            None => Ok(pruned),
        }
    }
}

impl Guessed {
    fn by_id(found: Found) -> Self {
        let of_door = if found.origin == Origin::Api { "api:" } else { "" };
        Self { counter: format!("{of_door}{}", found.phone), found: Some(found), counts: true }
    }

    /// Of each door one; as the statement of PostgreSQL has it.
    fn by_phone(phone: &PhoneNumber, v1: Option<Found>, api: Option<Found>) -> Vec<Self> {
        let is_none = v1.is_none() && api.is_none();
        let of = |found: Option<Found>, [known, unknown]: [&str; 2], counts| {
            let of_door = if found.is_some() { known } else { unknown };
            let counter = format!("{of_door}{}", phone.as_str());
            Self { counts: counts || found.is_some(), found, counter }
        };
        vec![of(v1, ["", "?"], is_none), of(api, ["api:", "api?"], false)]
    }

    fn is_right(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.is_right && !found.exhausted)
    }
}

impl Found {
    fn read(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self {
            id: read_id(row)?,
            phone: row.try_get("", "phone")?,
            origin: parsed(&row.try_get::<String>("", "origin")?, "an origin")?,
            exhausted: row.try_get("", "exhausted")?,
            is_right: row.try_get::<Option<bool>>("", "is_right")?.unwrap_or_default(),
        })
    }
}

/// Commits what was done in full, and nothing else.
async fn finish(transaction: Transaction, tried: Resending) -> Result<Resending, DbErr> {
    if matches!(tried, Resending::Sent(_)) {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(tried)
}

/// Hash, seed and the pepper's name, where the code is another one; otherwise empty texts.
fn new_secret(again: &Resend) -> [String; 3] {
    again.secret.as_ref().map_or_else(Default::default, |secret| {
        let pepper = secret.pepper.as_str().to_owned();
        [hex(secret.code_hash.as_bytes()), hex(secret.seed.as_bytes()), pepper]
    })
}

pub(crate) fn read(row: &QueryResult) -> Result<Verification, DbErr> {
    let text = |column| row.try_get::<String>("", column);
    let texts = |column| row.try_get::<Option<String>>("", column);
    let at = |column| row.try_get("", column).map(time);
    let small = |column| {
        let number: i32 = row.try_get("", column)?;
        u8::try_from(number).map_err(|_| DbErr::Type(format!("not a small {column}")))
    };
    let secret = texts("seed")?.map(|seed| {
        let seed = Seed::from_bytes(read_hex(&seed)?);
        Ok::<_, DbErr>(CodeSecret { pepper: parsed(&text("pepper_id")?, "a key's name")?, seed })
    });
    let template = texts("template")?;
    Ok(Verification {
        id: VerificationId::from_uuid(parsed(&text("id")?, "an id")?),
        origin: parsed(&text("origin")?, "an origin")?,
        phone: parsed(&text("phone")?, "a phone")?,
        region: read_region(row)?,
        status: parsed(&text("status")?, "a status")?,
        attempts: small("attempts")?,
        sends: small("sends")?,
        created_at: at("created_at")?,
        sent_at: at("sent_at")?,
        expires_at: at("expires_at")?,
        ended_at: row.try_get::<Option<i64>>("", "ended_at")?.map(time),
        read_at: at("read_at")?,
        code_length: usize::from(small("code_length")?)
            .try_into()
            .map_err(|_| DbErr::Type("not a length of codes".to_owned()))?,
        template: template.map(|key| parsed(&key, "a template")).transpose()?,
        metadata: texts("metadata")?.map(Metadata::new),
        api_key: texts("api_key")?.map(|id| parsed(&id, "a key's id")).transpose()?,
        secret: secret.transpose()?,
    })
}

/// Of an outer join.
pub(crate) fn read_if_any(row: &QueryResult) -> Result<Option<Verification>, DbErr> {
    let id: Option<String> = row.try_get("", "id")?;
    id.map(|_| read(row)).transpose()
}

fn read_region(row: &QueryResult) -> Result<Option<domain::Region>, DbErr> {
    let region: Option<String> = row.try_get("", "region")?;
    region.map(|region| parsed(&region, "a region")).transpose()
}

fn read_approval(row: &QueryResult) -> Result<Approval, DbErr> {
    Ok(Approval {
        id: read_id(row)?,
        origin: parsed(&row.try_get::<String>("", "origin")?, "an origin")?,
        phone: parsed(&row.try_get::<String>("", "phone")?, "a phone")?,
        region: read_region(row)?,
    })
}

fn read_newest(row: &QueryResult) -> Result<Newest, DbErr> {
    let id = |column| {
        let id: Option<String> = row.try_get("", column)?;
        id.map(|id| parsed(&id, "an id").map(VerificationId::from_uuid)).transpose()
    };
    Ok(Newest { v1: id("v1")?, api: id("api")? })
}

fn read_id(row: &QueryResult) -> Result<VerificationId, DbErr> {
    Ok(VerificationId::from_uuid(parsed(&row.try_get::<String>("", "id")?, "an id")?))
}

fn read_wrong(row: &QueryResult, attempts: i32) -> Result<CheckOutcome, DbErr> {
    Ok(CheckOutcome::Wrong {
        attempts: u8::try_from(attempts).unwrap_or(u8::MAX),
        pepper: parsed(&row.try_get::<String>("", "pepper_id")?, "a key's name")?,
    })
}

/// Why a known verification cannot be tried, as far as its own row says.
fn read_untried(row: &QueryResult) -> Result<Option<CheckOutcome>, DbErr> {
    let status = parsed(&row.try_get::<String>("", "status")?, "a status")?;
    Ok(match status {
        VerificationStatus::Approved => Some(CheckOutcome::Approved),
        VerificationStatus::Expired | VerificationStatus::Canceled => {
            Some(CheckOutcome::Gone(status))
        }
        VerificationStatus::Pending if row.try_get::<bool>("", "exhausted")? => {
            Some(CheckOutcome::Exhausted {
                retry_after: lasting(row.try_get("", "good_for")?),
                ttl: lasting(row.try_get("", "ttl")?),
            })
        }
        VerificationStatus::Pending => None,
    })
}

/// The names of policies, for SQLite.
fn names(policies: &[Policy]) -> Value {
    let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
    json!(names).to_string().into()
}

fn read_hex<const N: usize>(text: &str) -> Result<[u8; N], DbErr> {
    let mut bytes = [0; N];
    let is_whole = text.len() == 2 * N && text.is_ascii();
    for (place, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(2 * place..2 * place + 2).filter(|_| is_whole);
        let digits = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        *byte = digits.ok_or_else(|| DbErr::Type(format!("not {N} bytes")))?;
    }
    Ok(bytes)
}

/// What ledgers and the outbox know of one message.
#[derive(Debug, Default)]
struct Story {
    published: Option<i64>,
    sent: Option<i64>,
    open: bool,
    failed: Option<i64>,
    delivered: Option<i64>,
    undelivered: Option<i64>,
}

/// What a verification's row and those of its messages tell. Where several groups have a message,
/// one that sent it is enough, and it has failed once none can send it, or the gateway says so. What
/// was delivered has not failed, whatever was said before.
fn events(verification: &Verification, messages: &[QueryResult]) -> Result<Vec<Event>, DbErr> {
    let mut stories: BTreeMap<String, Story> = BTreeMap::new();
    for row in messages {
        let story = stories.entry(row.try_get("", "id")?).or_default();
        let (published, ended): (Option<i64>, Option<i64>) =
            (row.try_get("", "published_at")?, row.try_get("", "ended_at")?);
        story.published = story.published.into_iter().chain(published).min();
        let receipt = |column| row.try_get::<Option<i64>>("", column);
        story.delivered = story.delivered.into_iter().chain(receipt("delivered_at")?).min();
        story.undelivered = story.undelivered.into_iter().chain(receipt("undelivered_at")?).min();
        match &*row.try_get::<String>("", "state")? {
            "sent" => story.sent = story.sent.into_iter().chain(ended).min(),
            "failed" | "expired" | "unknown" => story.failed = story.failed.max(ended),
            _ => story.open = true,
        }
    }

    let event = |kind, at| Event { kind, at };
    let mut events = vec![event(EventKind::Created, verification.created_at)];
    if !verification.is_test() {
        events.push(event(EventKind::Queued, verification.created_at));
        if verification.sends > 1 {
            events.push(event(EventKind::Queued, verification.sent_at));
        }
    }
    for story in stories.into_values() {
        let failed = match story {
            Story { delivered: Some(_), .. } => None,
            Story { sent: None, open: false, failed: Some(at), .. } => Some(at),
            Story { undelivered, .. } => undelivered,
        };
        let told = [
            (EventKind::Published, story.published),
            (EventKind::Sent, story.sent),
            (EventKind::Delivered, story.delivered),
            (EventKind::Failed, failed),
        ];
        events.extend(told.into_iter().filter_map(|(kind, at)| Some(event(kind, time(at?)))));
    }
    let end = match verification.status {
        VerificationStatus::Pending => None,
        VerificationStatus::Approved => Some(EventKind::Approved),
        VerificationStatus::Expired => Some(EventKind::Expired),
        VerificationStatus::Canceled => Some(EventKind::Canceled),
    };
    events.extend(end.zip(verification.ended_at).map(|(kind, at)| event(kind, at)));
    events.sort_by_key(|event| (event.at, event.kind));
    Ok(events)
}
