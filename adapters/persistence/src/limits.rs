use std::{collections::HashMap, time::Duration};

use application::ports::{StoreError, Violation};
use domain::{Counter, PhoneNumber, Policy};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Parameters, Sql, Transaction, lasting, millis};

/// What was counted in a window, and how long the window still runs; zero if it has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) count: u32,
    pub(crate) left: Duration,
}

impl Used {
    pub(crate) fn room(self, quota: u32) -> u32 {
        if self.left.is_zero() { quota } else { quota.saturating_sub(self.count) }
    }
}

/// A counter of one policy.
#[derive(Debug, FromQueryResult)]
pub(crate) struct UsedRow {
    policy: String,
    used: i32,
    remains: i64,
}

impl UsedRow {
    fn used(&self) -> Used {
        Used { count: self.used.cast_unsigned(), left: lasting(self.remains) }
    }
}

/// The running windows of counters, by policy and key.
#[derive(Debug, Default)]
pub(crate) struct Counters(HashMap<(String, String), Used>);

impl Counters {
    pub(crate) async fn read<'a>(
        database: &Database,
        counters: impl Iterator<Item = &'a Counter> + Clone,
    ) -> Result<Self, DatabaseError> {
        static READ: Sql = Sql::new(
            "
SELECT policy, key, used, {millis(ends_at - {now})} AS remains
FROM limit_counter
WHERE (policy, key) IN (SELECT policy, key FROM :wanted) AND ends_at > {now}",
        );

        #[derive(FromQueryResult)]
        struct Row {
            key: String,
            #[sea_orm(nested)]
            counter: UsedRow,
        }

        let parameters = database.parameters().rows("wanted", counters, |wanted| {
            wanted
                .column("policy", |it| it.policy.name.as_str().to_owned())
                .column("key", |it| it.key.clone())
        });
        let rows: Vec<Row> = database.rows(&READ, parameters).await?;
        let counters = rows.into_iter().map(|Row { key, counter }| {
            let used = counter.used();
            ((counter.policy, key), used)
        });
        Ok(Self(counters.collect()))
    }

    /// Returns which of `counters` have no room.
    pub(crate) fn violations(&self, counters: &[Counter]) -> Vec<Violation> {
        counters.iter().filter_map(|it| self.violation(&it.policy, &place(it))).collect()
    }

    /// Counts one more under each of `counters`. If some have no room, returns them and counts none.
    pub(crate) fn take(&mut self, counters: &[Counter]) -> Vec<Violation> {
        let violations = self.violations(counters);
        if !violations.is_empty() {
            return violations;
        }
        for counter in counters {
            let fresh = Used { count: 0, left: counter.policy.window.period };
            self.0.entry(place(counter)).or_insert(fresh).count += 1;
        }
        violations
    }

    fn violation(&self, policy: &Policy, place: &(String, String)) -> Option<Violation> {
        let used = self.0.get(place)?;
        let is_over = used.room(policy.window.quota) == 0;
        is_over.then(|| Violation { policy: policy.clone(), retry_after: used.left })
    }
}

fn place(counter: &Counter) -> (String, String) {
    (counter.policy.name.as_str().to_owned(), counter.key.clone())
}

/// Returns which of the policies have no room, by the counters of one key.
pub(crate) fn violations(policies: &[Policy], rows: &[UsedRow]) -> Vec<Violation> {
    let over = |row: &UsedRow| {
        let used = row.used();
        let known = policies.iter().find(|policy| policy.name.as_str() == row.policy);
        known
            .filter(|policy| used.room(policy.window.quota) == 0)
            .map(|policy| Violation { policy: policy.clone(), retry_after: used.left })
    };
    rows.iter().filter_map(over).collect()
}

/// Adds the table `counter`.
pub(crate) fn counter_rows<'a>(
    parameters: Parameters,
    counters: impl Iterator<Item = &'a Counter> + Clone,
) -> Parameters {
    parameters.rows("counter", counters, |counter| {
        counter
            .column("policy", |it| it.policy.name.as_str().to_owned())
            .column("key", |it| it.key.clone())
            .column("quota", |it| it.policy.window.quota.cast_signed())
            .column("period", |it| millis(it.policy.window.period))
    })
}

/// Counts under counters in SQLite. Returns whether all of them had room; otherwise the transaction
/// must not be committed.
pub(crate) async fn count_sqlite<'a>(
    database: &Database,
    transaction: &Transaction,
    counters: impl Iterator<Item = &'a Counter> + Clone,
    now: i64,
) -> Result<bool, DatabaseError> {
    static COUNT: Sql = Sql::new(
        "
INSERT INTO limit_counter AS known (policy, key, quota, used, ends_at)
SELECT policy, key, max(quota), count(*), {now} + max(period)
FROM :counter
WHERE true
GROUP BY 1, 2
ON CONFLICT (policy, key) DO UPDATE SET
    quota = excluded.quota,
    used = CASE WHEN known.ends_at > {now} THEN known.used ELSE 0 END + excluded.used,
    ends_at = CASE WHEN known.ends_at > {now} THEN known.ends_at ELSE excluded.ends_at END
RETURNING used <= quota AS holds",
    );

    #[derive(FromQueryResult)]
    struct Row {
        holds: bool,
    }

    let parameters = counter_rows(database.parameters().with("now", now), counters);
    let rows: Vec<Row> = transaction.rows(&COUNT, parameters).await?;
    Ok(rows.iter().all(|row| row.holds))
}

/// What was forgotten of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleared {
    /// Windows of guesses.
    pub guesses: u64,
    /// Accounts of messages that had a running window.
    pub messages: u64,
}

/// Forgets the guesses at a phone and the messages to it, of both origins.
pub async fn clear_limits(database: &Database, phone: &PhoneNumber) -> Result<Cleared, StoreError> {
    let parameters = || database.parameters().with("phone", phone.as_str());
    let guesses = database.execute(&FORGET_GUESSES, parameters()).await?;
    let messages = database.execute(&FORGET_MESSAGES, parameters()).await?;
    Ok(Cleared { guesses, messages })
}

static FORGET_GUESSES: Sql = Sql::new(
    "
DELETE FROM limit_counter
WHERE policy LIKE 'check-%'
  AND key IN (:phone, '?' || :phone, 'api:' || :phone, 'api?' || :phone)",
);

static FORGET_MESSAGES: Sql = Sql::pair(
    "
UPDATE phone
SET ends_1 = now(), ends_2 = now(), ends_3 = now()
WHERE phone IN (:phone, 'api:' || :phone) AND greatest(ends_1, ends_2, ends_3) > now()",
    "
UPDATE phone
SET ends_1 = 0, ends_2 = 0, ends_3 = 0
WHERE phone IN (:phone, 'api:' || :phone) AND max(ends_1, ends_2, ends_3) > {now}",
);
