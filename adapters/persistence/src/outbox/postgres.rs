//! Stores a batch in PostgreSQL with one statement. With counters, which `/v1` has by default, the
//! statement is in a transaction: `BEGIN`, the statement, `COMMIT` or `ROLLBACK`.

use application::ports::NewSend;
use sea_orm::{DatabaseConnection, FromQueryResult};

use super::inserted::{Inserted, verification_columns};
use crate::{
    database::{Database, DatabaseError, EventSql, Fragment, Parameters, begin, millis, query},
    phones::{Account, COUNT_ON_PHONE, Wanted, wanted_rows},
};

/// Stores sends in one statement and one commit. With counters it is a transaction, which is rolled
/// back if a counter is over its quota.
pub(super) async fn insert(
    database: &Database,
    connection: &DatabaseConnection,
    sends: &[&NewSend],
    wanted: &[Wanted],
) -> Result<Inserted, DatabaseError> {
    let parameters = wanted_rows(send_rows(database.parameters(), sends), wanted.iter());
    if sends.iter().all(|send| send.extra.is_empty()) {
        let statement = STORE.of(database.events()).statement(parameters)?;
        return Ok(inserted(query(connection, statement).await?, true));
    }
    let parameters = counter_rows(parameters, sends);
    let transaction = begin(connection).await?;
    let rows: Vec<Row> =
        transaction.rows(COUNT_AND_STORE.of(database.events()), parameters).await?;
    let holds = rows.first().is_none_or(|row| row.holds);
    if holds {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(inserted(rows, holds))
}

#[derive(FromQueryResult)]
struct Row {
    account: String,
    accepted_at: i64,
    holds: bool,
}

fn inserted(rows: Vec<Row>, holds: bool) -> Inserted {
    let accounts = rows.into_iter().map(|row| (row.account, row.accepted_at)).collect();
    Inserted { accounts, holds }
}

fn send_rows(parameters: Parameters, sends: &[&NewSend]) -> Parameters {
    parameters.rows("new", sends.iter(), |new| {
        verification_columns(new, |it| *it)
            .column("id", |it| it.message.id.as_uuid())
            // The phone as the message is sent to it; `phone` is its one form.
            .column("written", |it| it.message.phone.as_str().to_owned())
            .column("code", |it| it.message.code.as_text().into_owned())
            .column("trace", |it| it.trace.as_str().to_owned())
            .column("account", |it| Account::of(&it.phone, it.apart).into_text())
    })
}

fn counter_rows(parameters: Parameters, sends: &[&NewSend]) -> Parameters {
    let counters =
        sends.iter().flat_map(|send| send.extra.iter().map(move |counter| (*send, counter)));
    parameters.rows("counter", counters, |counter| {
        counter
            .column("account", |(send, _)| Account::of(&send.phone, send.apart).into_text())
            .column("policy", |(_, it)| it.policy.name.as_str().to_owned())
            .column("key", |(_, it)| it.key.clone())
            .column("quota", |(_, it)| it.policy.window.quota.cast_signed())
            .column("period", |(_, it)| millis(it.policy.window.period))
    })
}

/// Without counters.
static STORE: EventSql = EventSql::postgres(
    TEXT,
    &[COUNT_ON_PHONE, NO_COUNTERS, HOLDS, CREATED],
    &[COUNT_ON_PHONE, NO_COUNTERS, HOLDS, Fragment::NO_EVENTS],
);

static COUNT_AND_STORE: EventSql = EventSql::postgres(
    TEXT,
    &[COUNT_ON_PHONE, COUNTERS, COUNTERS_HOLD, CREATED],
    &[COUNT_ON_PHONE, COUNTERS, COUNTERS_HOLD, Fragment::NO_EVENTS],
);

// Locks in the order of all statements, which ARCHITECTURE.md lists. `outbox` comes before
// `verification` here, which is harmless: both rows are new, and no other transaction sees them. Of
// two requests that use the same ids, the second waits for the first at the phone.
const TEXT: &str = "
WITH new AS MATERIALIZED (
    SELECT * FROM :new
), wanted AS (
    -- one row for each account, whatever is sent to it
    SELECT * FROM :wanted
), allowed AS (
    -- accounts that this leaves out were refused, and nothing else happens for them
    INSERT INTO phone AS known
        (phone, newest, newest_until, api_newest, api_newest_until, exclusive, quota_1, sends_1,
         ends_1, quota_2, sends_2, ends_2, quota_3, sends_3, ends_3)
    SELECT account,
        CASE WHEN NOT of_api THEN newest END,
        CASE WHEN NOT of_api THEN now() + {duration(ttl)} ELSE '-infinity' END,
        CASE WHEN of_api THEN newest END,
        CASE WHEN of_api THEN now() + {duration(ttl)} ELSE '-infinity' END,
        exclusive,
        quota_1, sends, now() + {duration(period_1)},
        quota_2, sends, now() + {duration(period_2)},
        quota_3, sends, now() + {duration(period_3)}
    FROM wanted
    ORDER BY account{count_on_phone}
    RETURNING known.phone AS account
){counters}, numbered AS MATERIALIZED (
    -- Places in the outbox are drawn after the phones are locked, and only for messages that are
    -- stored: the relay waits for a place that it does not see.
    SELECT *, nextval('outbox_sequence_seq') AS sequence
    FROM new
    WHERE {holds} AND (account IN (SELECT account FROM allowed)) IS TRUE
), stored AS (
    INSERT INTO outbox (sequence, id, phone, code, trace, expires_at)
    SELECT sequence, id, written, code, trace, now() + {duration(ttl)}
    FROM numbered
), created AS (
    INSERT INTO verification
        (id, phone, origin, region, code_hash, seed, pepper_id, code_length, template, metadata,
         api_key, sequence, expires_at)
    SELECT verification, phone, origin, nullif(region, ''), code_hash, seed, pepper_id, code_length,
        nullif(template, ''), nullif(metadata, ''),
        nullif(api_key, '00000000-0000-0000-0000-000000000000'), sequence,
        now() + {duration(ttl)}
    FROM numbered
    RETURNING id
){events}
SELECT account, {millis(now())} AS accepted_at, {holds} AS holds
FROM allowed";

const NO_COUNTERS: Fragment = Fragment::new("counters", "");

const HOLDS: Fragment = Fragment::new("holds", "true");

const COUNTERS: Fragment = Fragment::new(
    "counters",
    ", counted AS (
    INSERT INTO limit_counter AS known (policy, key, quota, used, ends_at)
    SELECT policy, key, max(quota), count(*), now() + {duration(max(period))}
    FROM :counter
    WHERE (account IN (SELECT account FROM allowed)) IS TRUE
    GROUP BY policy, key
    ORDER BY policy, key
    ON CONFLICT (policy, key) DO UPDATE SET
        quota = excluded.quota,
        used = CASE WHEN known.ends_at > now() THEN known.used ELSE 0 END + excluded.used,
        ends_at = CASE WHEN known.ends_at > now() THEN known.ends_at ELSE excluded.ends_at END
    -- a fresh counter, which has no conflict, may be over its quota as well
    RETURNING used <= quota AS holds
)",
);

const COUNTERS_HOLD: Fragment =
    Fragment::new("holds", "(SELECT bool_and(holds) FROM counted) IS NOT FALSE");

const CREATED: Fragment = Fragment::new(
    "events",
    ", told AS (
    INSERT INTO event (kind, verification) SELECT 'created', id FROM created
)",
);
