use std::{collections::HashMap, time::Duration};

use application::ports::Violation;
use domain::{Counter, PhoneNumber, Policy, Windows};
use sea_orm::{DbErr, QueryResult, Value};
use serde_json::json;

use crate::database::{Database, Sql, Told, lasting, millis};

/// Counts sends on the row of a phone, if each of its windows has room and, where they want the
/// phone for themselves, nothing is pending for it. A row that is refused is not returned.
///
/// Each door has its newest verification there, and a send leaves the other door's alone.
///
/// The row keeps the quotas because only what is to be inserted is seen here without a look-up. A
/// quota of 0 is no window; sends of others whose window it is are counted in it all the same.
macro_rules! count_on_phone {
    ($now:literal) => {
        concat!(
            "
    ON CONFLICT (phone) DO UPDATE SET
        newest = coalesce(excluded.newest, known.newest),
        newest_until = CASE WHEN excluded.newest IS NULL THEN known.newest_until
            ELSE excluded.newest_until END,
        api_newest = coalesce(excluded.api_newest, known.api_newest),
        api_newest_until = CASE WHEN excluded.api_newest IS NULL THEN known.api_newest_until
            ELSE excluded.api_newest_until END,
        exclusive = excluded.exclusive,
        quota_1 = excluded.quota_1,
        sends_1 = CASE WHEN known.ends_1 > ",
            $now,
            " THEN known.sends_1 ELSE 0 END + excluded.sends_1,
        ends_1 = CASE WHEN known.ends_1 > ",
            $now,
            " THEN known.ends_1 ELSE excluded.ends_1 END,
        quota_2 = excluded.quota_2,
        sends_2 = CASE WHEN known.ends_2 > ",
            $now,
            " THEN known.sends_2 ELSE 0 END + excluded.sends_2,
        ends_2 = CASE WHEN known.ends_2 > ",
            $now,
            " THEN known.ends_2 ELSE excluded.ends_2 END,
        quota_3 = excluded.quota_3,
        sends_3 = CASE WHEN known.ends_3 > ",
            $now,
            " THEN known.sends_3 ELSE 0 END + excluded.sends_3,
        ends_3 = CASE WHEN known.ends_3 > ",
            $now,
            " THEN known.ends_3 ELSE excluded.ends_3 END
    WHERE NOT (excluded.exclusive AND known.newest_until > ",
            $now,
            ")
      AND (excluded.quota_1 = 0 OR known.ends_1 <= ",
            $now,
            " OR known.sends_1 + excluded.sends_1 <= excluded.quota_1)
      AND (excluded.quota_2 = 0 OR known.ends_2 <= ",
            $now,
            " OR known.sends_2 + excluded.sends_2 <= excluded.quota_2)
      AND (excluded.quota_3 = 0 OR known.ends_3 <= ",
            $now,
            " OR known.sends_3 + excluded.sends_3 <= excluded.quota_3)"
        )
    };
}
pub(crate) use count_on_phone;

/// What a phone's windows are kept under, and its newest verifications.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Account(String);

impl Account {
    /// `apart`: of what comes through an open `/api` only.
    pub(crate) fn of(phone: &PhoneNumber, apart: bool) -> Self {
        Self(format!("{}{}", if apart { "api:" } else { "" }, phone.as_str()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// What was counted in a window, and how long it still runs; zero: it is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) count: u32,
    pub(crate) left: Duration,
}

/// The windows of a phone, in the order of the list that they were counted by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhoneWindows([Used; 3]);

impl Used {
    fn read(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self {
            count: row.try_get::<i32>("", "used")?.cast_unsigned(),
            left: lasting(row.try_get("", "remains")?),
        })
    }

    fn room(self, quota: u32) -> u32 {
        if self.left.is_zero() { quota } else { quota.saturating_sub(self.count) }
    }
}

impl PhoneWindows {
    pub(crate) fn read(row: &QueryResult) -> Result<Self, DbErr> {
        let used = |count, left| {
            Ok::<_, DbErr>(Used {
                count: row.try_get::<i32>("", count)?.cast_unsigned(),
                left: lasting(row.try_get("", left)?),
            })
        };
        let windows =
            [used("sends_1", "left_1")?, used("sends_2", "left_2")?, used("sends_3", "left_3")?];
        Ok(Self(windows))
    }

    /// How many more sends they have room for.
    pub(crate) fn room(&self, windows: &Windows) -> u32 {
        windows
            .iter()
            .zip(self.0)
            .map(|(window, used)| used.room(window.quota))
            .min()
            .unwrap_or(u32::MAX)
    }

    /// Those that have no room.
    pub(crate) fn violations(&self, windows: &Windows) -> Vec<Violation> {
        let policies = windows.policies("phone").into_iter().zip(self.0);
        policies
            .filter(|(policy, used)| used.room(policy.window.quota) == 0)
            .map(|(policy, used)| Violation { policy, retry_after: used.left })
            .collect()
    }
}

/// Counters by policy and key, as far as their windows run.
#[derive(Debug, Default)]
pub(crate) struct Counters(HashMap<(String, String), Used>);

impl Counters {
    pub(crate) async fn read<'a>(
        database: &Database,
        counters: impl Iterator<Item = &'a Counter>,
    ) -> Result<Self, DbErr> {
        let (policies, keys): (Vec<String>, Vec<String>) = counters
            .map(|counter| (counter.policy.name.as_str().to_owned(), counter.key.clone()))
            .unzip();
        let values: Vec<Value> = if database.is_postgres() {
            vec![policies.into(), keys.into()]
        } else {
            let pairs: Vec<_> = policies.iter().zip(&keys).collect();
            vec![json!(pairs).to_string().into()]
        };
        Self::of(&database.rows(READ, values).await?)
    }

    fn of(rows: &[QueryResult]) -> Result<Self, DbErr> {
        let read = |row: &QueryResult| {
            let used = Used::read(row)?;
            Ok(((row.try_get("", "policy")?, row.try_get("", "key")?), used))
        };
        rows.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Which of `counters` have no room.
    pub(crate) fn violations(&self, counters: &[Counter]) -> Vec<Violation> {
        counters.iter().filter_map(|it| self.violation(&it.policy, &place(it))).collect()
    }

    /// Counts one more under each of `counters`, or says which have no room and counts none.
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

/// Which of the policies have no room, by rows with `policy`, `used` and `remains` of one key.
pub(crate) fn violations(
    policies: &[Policy],
    rows: &[QueryResult],
) -> Result<Vec<Violation>, DbErr> {
    let mut violations = Vec::new();
    for row in rows {
        let name: String = row.try_get("", "policy")?;
        let used = Used::read(row)?;
        let known = policies.iter().find(|policy| policy.name.as_str() == name);
        if let Some(policy) = known.filter(|policy| used.room(policy.window.quota) == 0) {
            violations.push(Violation { policy: policy.clone(), retry_after: used.left });
        }
    }
    Ok(violations)
}

const READ: Sql = Sql {
    postgres: "
SELECT policy, key, used, (extract(epoch FROM ends_at - now()) * 1000)::bigint AS remains
FROM limit_counter
WHERE (policy, key) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND ends_at > now()",
    sqlite: "
SELECT policy, key, used, ends_at - CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS remains
FROM limit_counter
WHERE (policy, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each($1))
  AND ends_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
};

/// Counts under counters, of which a list of `[policy, key, quota, period]` is given; what is over
/// its quota then must not be committed.
pub(crate) const COUNT_SQLITE: &str = "
INSERT INTO limit_counter AS known (policy, key, quota, used, ends_at)
SELECT value ->> 0, value ->> 1, max(value ->> 2), count(*), $2 + max(value ->> 3)
FROM json_each($1)
WHERE true
GROUP BY 1, 2
ON CONFLICT (policy, key) DO UPDATE SET
    quota = excluded.quota,
    used = CASE WHEN known.ends_at > $2 THEN known.used ELSE 0 END + excluded.used,
    ends_at = CASE WHEN known.ends_at > $2 THEN known.ends_at ELSE excluded.ends_at END
RETURNING used <= quota AS holds";

/// A row of the list of [`COUNT_SQLITE`].
pub(crate) fn counter_row(Counter { policy, key }: &Counter) -> serde_json::Value {
    json!([policy.name.as_str(), key, policy.window.quota, millis(policy.window.period)])
}

/// Quota and period of up to three windows; zeros: there is none.
pub(crate) fn window_params(windows: &Windows) -> [(i32, i64); 3] {
    let mut three = [(0, 0); 3];
    for (place, window) in three.iter_mut().zip(windows.iter()) {
        *place = (window.quota.cast_signed(), millis(window.period));
    }
    three
}

/// What was forgotten of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleared {
    /// Windows of guesses at it.
    pub guesses: u64,
    /// Accounts of messages to it that had a running window.
    pub messages: u64,
}

/// Forgets the guesses at a phone and the messages to it, from both doors.
pub async fn clear_limits(
    database: &Database,
    phone: &PhoneNumber,
) -> Result<Cleared, application::ports::StoreError> {
    let values = || vec![phone.as_str().into()];
    let guesses = database.execute(FORGET_GUESSES, values()).await.map_err(Told)?;
    let messages = database.execute(FORGET_MESSAGES, values()).await.map_err(Told)?;
    Ok(Cleared { guesses, messages })
}

const FORGET_GUESSES: Sql = Sql {
    postgres: "
DELETE FROM limit_counter
WHERE policy LIKE 'check-%' AND key IN ($1, '?' || $1, 'api:' || $1, 'api?' || $1)",
    sqlite: "
DELETE FROM limit_counter
WHERE policy LIKE 'check-%' AND key IN ($1, '?' || $1, 'api:' || $1, 'api?' || $1)",
};

const FORGET_MESSAGES: Sql = Sql {
    postgres: "
UPDATE phone
SET ends_1 = now(), ends_2 = now(), ends_3 = now()
WHERE phone IN ($1, 'api:' || $1) AND greatest(ends_1, ends_2, ends_3) > now()",
    sqlite: "
UPDATE phone
SET ends_1 = 0, ends_2 = 0, ends_3 = 0
WHERE phone IN ($1, 'api:' || $1)
  AND max(ends_1, ends_2, ends_3) > CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
};
