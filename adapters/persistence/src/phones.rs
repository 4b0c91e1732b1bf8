//! The counters of a phone and its newest verification of each origin, in one row (ADR 17).

use std::collections::HashSet;

use application::ports::{Verification, Violation};
use domain::{PhoneNumber, VerificationId, Windows};
use sea_orm::FromQueryResult;

use crate::{
    database::{Database, DatabaseError, Fragment, Parameters, Sql, Transaction, lasting, millis},
    limits::Used,
    verification_row::{VERIFICATION_COLUMNS, VerificationRow},
};

/// The key of a row of `phone`: its digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Account(String);

impl Account {
    /// `apart`: the row of the messages of an open `/api`, which are counted apart.
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

/// What one statement counts on an account.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) account: String,
    /// The verification of the last of the sends.
    pub(crate) newest: VerificationId,
    /// How long that verification lasts.
    pub(crate) ttl: i64,
    /// Whether a pending verification of `/v1` prevents the send.
    pub(crate) exclusive: bool,
    /// The verification is one of `/api`.
    pub(crate) of_api: bool,
    pub(crate) sends: u32,
    pub(crate) windows: [(i32, i64); 3],
}

/// Adds the table `wanted`.
pub(crate) fn wanted_rows<'a>(
    parameters: Parameters,
    wanted: impl Iterator<Item = &'a Wanted> + Clone,
) -> Parameters {
    parameters.rows("wanted", wanted, |wanted| {
        wanted
            .column("account", |it| it.account.clone())
            .column("newest", |it| it.newest.as_uuid())
            .column("ttl", |it| it.ttl)
            .column("exclusive", |it| it.exclusive)
            .column("of_api", |it| it.of_api)
            .column("sends", |it| it.sends.cast_signed())
            .column("quota_1", |it| it.windows[0].0)
            .column("period_1", |it| it.windows[0].1)
            .column("quota_2", |it| it.windows[1].0)
            .column("period_2", |it| it.windows[1].1)
            .column("quota_3", |it| it.windows[2].0)
            .column("period_3", |it| it.windows[2].1)
    })
}

/// Returns quota and period of up to three windows. Zeros stand for no window.
pub(crate) fn window_params(windows: &Windows) -> [(i32, i64); 3] {
    let mut params = [(0, 0); 3];
    for (place, window) in params.iter_mut().zip(windows.iter()) {
        *place = (window.quota.cast_signed(), millis(window.period));
    }
    params
}

/// The `ON CONFLICT` of an insert into `phone AS known`: counts sends if each window has room and,
/// if they are exclusive, nothing is pending. A row that is refused is not returned.
///
/// The row has the newest verification of each origin; a send leaves that of the other origin alone.
///
/// The row also keeps the quotas, because `ON CONFLICT` sees only what is inserted. A quota of 0 is
/// no window, but sends under another policy are counted in it.
pub(crate) const COUNT_ON_PHONE: Fragment = Fragment::new(
    "count_on_phone",
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
        sends_1 = CASE WHEN known.ends_1 > {now} THEN known.sends_1 ELSE 0 END + excluded.sends_1,
        ends_1 = CASE WHEN known.ends_1 > {now} THEN known.ends_1 ELSE excluded.ends_1 END,
        quota_2 = excluded.quota_2,
        sends_2 = CASE WHEN known.ends_2 > {now} THEN known.sends_2 ELSE 0 END + excluded.sends_2,
        ends_2 = CASE WHEN known.ends_2 > {now} THEN known.ends_2 ELSE excluded.ends_2 END,
        quota_3 = excluded.quota_3,
        sends_3 = CASE WHEN known.ends_3 > {now} THEN known.sends_3 ELSE 0 END + excluded.sends_3,
        ends_3 = CASE WHEN known.ends_3 > {now} THEN known.ends_3 ELSE excluded.ends_3 END
    WHERE NOT (excluded.exclusive AND known.newest_until > {now})
      AND (excluded.quota_1 = 0 OR known.ends_1 <= {now}
           OR known.sends_1 + excluded.sends_1 <= excluded.quota_1)
      AND (excluded.quota_2 = 0 OR known.ends_2 <= {now}
           OR known.sends_2 + excluded.sends_2 <= excluded.quota_2)
      AND (excluded.quota_3 = 0 OR known.ends_3 <= {now}
           OR known.sends_3 + excluded.sends_3 <= excluded.quota_3)",
);

/// Counts sends in SQLite. Returns the accounts that have room for theirs.
pub(crate) async fn count_sqlite(
    database: &Database,
    transaction: &Transaction,
    wanted: &[Wanted],
    now: i64,
) -> Result<HashSet<String>, DatabaseError> {
    static COUNT: Sql = Sql::with(
        &[COUNT_ON_PHONE],
        "",
        "
INSERT INTO phone AS known
    (phone, newest, newest_until, api_newest, api_newest_until, exclusive, quota_1, sends_1, ends_1,
     quota_2, sends_2, ends_2, quota_3, sends_3, ends_3)
SELECT account,
    iif(of_api, NULL, newest), iif(of_api, 0, {now} + ttl),
    iif(of_api, newest, NULL), iif(of_api, {now} + ttl, 0),
    exclusive,
    quota_1, sends, {now} + period_1,
    quota_2, sends, {now} + period_2,
    quota_3, sends, {now} + period_3
FROM :wanted
WHERE true{count_on_phone}
RETURNING phone AS account",
    );

    #[derive(FromQueryResult)]
    struct Row {
        account: String,
    }

    let parameters = wanted_rows(database.parameters().with("now", now), wanted.iter());
    let rows: Vec<Row> = transaction.rows(&COUNT, parameters).await?;
    Ok(rows.into_iter().map(|row| row.account).collect())
}

#[derive(Debug, FromQueryResult)]
pub(crate) struct PhoneRow {
    account: String,
    #[sea_orm(nested)]
    pub(crate) windows: PhoneWindows,
    #[sea_orm(nested)]
    pending: Option<VerificationRow>,
}

#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) windows: PhoneWindows,
    pub(crate) pending: Option<Verification>,
}

/// The windows of a phone, in the order of the list that they were counted by.
#[derive(Debug, FromQueryResult)]
pub(crate) struct PhoneWindows {
    sends_1: i32,
    left_1: i64,
    sends_2: i32,
    left_2: i64,
    sends_3: i32,
    left_3: i64,
}

impl PhoneRow {
    /// Returns what is counted on these accounts, and what is pending for them.
    pub(crate) async fn of(
        database: &Database,
        mut accounts: Vec<String>,
    ) -> Result<Vec<Self>, DatabaseError> {
        accounts.sort_unstable();
        accounts.dedup();
        database.rows(&PHONES, database.parameters().list("accounts", accounts)).await
    }

    /// Returns its account, and what is known of it.
    pub(crate) fn known(self) -> Result<(String, Known), DatabaseError> {
        let pending = self.pending.map(VerificationRow::verification).transpose()?;
        Ok((self.account, Known { windows: self.windows, pending }))
    }
}

impl PhoneWindows {
    fn used(&self) -> [Used; 3] {
        [(self.sends_1, self.left_1), (self.sends_2, self.left_2), (self.sends_3, self.left_3)]
            .map(|(count, left)| Used { count: count.cast_unsigned(), left: lasting(left) })
    }

    /// Returns how many more sends they have room for.
    pub(crate) fn room(&self, windows: &Windows) -> u32 {
        let rooms = windows.iter().zip(self.used()).map(|(window, used)| used.room(window.quota));
        rooms.min().unwrap_or(u32::MAX)
    }

    /// Returns the windows without room.
    pub(crate) fn violations(&self, windows: &Windows) -> Vec<Violation> {
        let policies = windows.policies("phone").into_iter().zip(self.used());
        policies
            .filter(|(policy, used)| used.room(policy.window.quota) == 0)
            .map(|(policy, used)| Violation { policy, retry_after: used.left })
            .collect()
    }
}

static PHONES: Sql = Sql::with(
    &[VERIFICATION_COLUMNS],
    "
SELECT known.phone AS account,
    sends_1, {millis(ends_1 - now())} AS left_1,
    sends_2, {millis(ends_2 - now())} AS left_2,
    sends_3, {millis(ends_3 - now())} AS left_3,
    pending.*
FROM phone AS known
    LEFT JOIN (
        SELECT id AS pending, {verification_columns}
        FROM verification
        WHERE status = 'pending' AND expires_at > now()
    ) AS pending ON pending.pending = known.newest
WHERE known.phone = ANY (:accounts::text[])",
    "
SELECT known.phone AS account,
    sends_1, ends_1 - clock.now AS left_1,
    sends_2, ends_2 - clock.now AS left_2,
    sends_3, ends_3 - clock.now AS left_3,
    pending.*
FROM (SELECT {now} AS now) AS clock
    CROSS JOIN phone AS known
    LEFT JOIN (
        SELECT {verification_columns}
        FROM verification
        WHERE status = 'pending' AND expires_at > {now}
    ) AS pending ON pending.id = known.newest
WHERE known.phone IN (SELECT value FROM json_each(:accounts))",
);
