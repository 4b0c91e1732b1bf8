//! A database that is full of earlier messages.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    api, end, prepare,
    relay::{drain, fill},
};
use crate::{
    bench::{
        Setting,
        measure::{closed, submissions},
        report::{Found, Row, Spread},
    },
    kit::{process::Role, progress::say, tables, tally::Tally, testbed::Testbed},
};

const CONNECTIONS: usize = 256;
const FINISHED: usize = 10_000_000;
const WAITING: usize = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// Accepting and relaying in an empty database and in one that is full of messages.
pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let (finished, waiting) = (setting.scaled(FINISHED), setting.scaled(WAITING));
    let (empty, full) = (one(setting).await?, one(setting).await?);
    let begun = Instant::now();
    finish(&full.0, finished).await?;
    wait(&full.0, waiting).await?;
    let size =
        tables::count(&full.0.database, "SELECT pg_database_size(current_database())").await?;
    let seconds = begun.elapsed().as_secs_f64();
    say(&format!("  loaded {} MB in {seconds:.0} s", size / 1_000_000));
    let (mut accepts, mut relays) = (Pair::default(), Pair::default());
    for round in 1..=setting.repeats {
        let first = u64::try_from(round)? << 28;
        for ((testbed, port), accepts, relays) in [
            (&empty, &mut accepts.empty, &mut relays.empty),
            (&full, &mut accepts.full, &mut relays.full),
        ] {
            let load = closed(*port, CONNECTIONS, setting.measured, first, &submissions()).await?;
            accepts.push(load.only_good()?.rate());
            relays.push(relay(testbed).await?);
        }
        wait(&full.0, waiting).await?;
    }
    for (testbed, _) in [&empty, &full] {
        // Otherwise `end` takes a processor that does not run for one that crashed.
        testbed.start(&[Role::Processor]).await?;
        end(testbed).await?;
    }
    let row = |what: &str, found: Pair| {
        let figure =
            format!("{what}, {} finished, {} waiting", millions(finished), millions(waiting));
        Row::new("growth", figure, "/s", Spread::of(found.full))
            .against("empty", Spread::of(found.empty))
            .at_least(0.9, 1.0)
    };
    Ok(vec![row("requests", accepts), row("relay", relays)].into())
}

#[expect(clippy::cast_precision_loss, reason = "some millions")]
fn millions(rows: usize) -> String {
    format!("{} million", rows as f64 / 1e6)
}

/// Rates in an empty database and in a full one.
#[derive(Default)]
struct Pair {
    empty: Vec<f64>,
    full: Vec<f64>,
}

async fn one(setting: &Setting) -> anyhow::Result<(Testbed<Tally>, u16)> {
    let testbed = prepare(setting, (1, 1, 0), &[("LIMIT_PHONE", "off")]).await?;
    let port = api(&testbed).await?;
    Ok((testbed, port))
}

/// Publishes all waiting messages. Returns how many a second.
async fn relay(testbed: &Testbed<Tally>) -> anyhow::Result<f64> {
    let rows =
        usize::try_from(tables::count(&testbed.database, "SELECT count(*) FROM outbox").await?)?;
    let rate = drain(testbed, rows).await?;
    for process in testbed.of_role(Role::Processor) {
        process.terminate(PATIENCE).await;
    }
    sqlx::query("TRUNCATE outbox").execute(&testbed.database).await?;
    Ok(rate)
}

/// Adds messages that were sent over the last days, with their verifications, and the phones of the
/// last day.
async fn finish(testbed: &Testbed<Tally>, rows: usize) -> anyhow::Result<()> {
    for first in (1..=rows).step_by(CHUNK) {
        let last = rows.min(first + CHUNK - 1);
        for sql in [PAST_DELIVERIES, PAST_VERIFICATIONS, PAST_PHONES] {
            let insert = sqlx::query(sql).bind(i64::try_from(first)?).bind(i64::try_from(last)?);
            insert.bind(i64::try_from(rows)?).execute(&testbed.database).await?;
        }
    }
    sqlx::query("VACUUM ANALYZE").execute(&testbed.database).await?;
    Ok(())
}

/// Adds messages as if the API had just stored them, with their verifications and phones.
async fn wait(testbed: &Testbed<Tally>, rows: usize) -> anyhow::Result<()> {
    fill(testbed, rows).await?;
    for sql in [WAITING_VERIFICATIONS, WAITING_PHONES] {
        sqlx::query(sql).execute(&testbed.database).await?;
    }
    sqlx::query("VACUUM ANALYZE").execute(&testbed.database).await?;
    Ok(())
}

/// Rows of one statement: few enough to keep its temporary files small.
const CHUNK: usize = 1_000_000;

// Twenty a second. Ids are in their order, so that each page of the index is written once. That
// does not make lookups faster.
const PAST_DELIVERIES: &str = "
INSERT INTO delivery (group_id, message_id, topic, partition, phone, trace, accepted_at, expires_at,
    due_at, state, attempt, ended_at, code)
SELECT 'message-group', (lpad(to_hex(n * 4294967295 / $3), 8, '0') || substr(md5(n::text), 9))::uuid,
    'message', n % 4, '791' || lpad(n::text, 10, '0'),
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', at, at + interval '10 minutes', at,
    'sent', 1, at + interval '5 ms', NULL
FROM generate_series($1::bigint, $2::bigint) AS n,
    LATERAL (SELECT now() - ($3 - n) * interval '50 ms' AS at) AS moment";
const PAST_VERIFICATIONS: &str = "
INSERT INTO verification (id, phone, origin, status, pepper_id, code_length, sequence, created_at,
    sent_at, expires_at, ended_at)
SELECT (lpad(to_hex(n * 4294967295 / $3), 8, '0') || substr(md5(n::text), 9, 22) || '00')::uuid,
    '791' || lpad(n::text, 10, '0'), 'api', 'expired', 'p1', 6, n - $3 - 1, at, at,
    at + interval '10 minutes', at + interval '10 minutes'
FROM generate_series($1::bigint, $2::bigint) AS n,
    LATERAL (SELECT now() - interval '10 minutes' - ($3 - n) * interval '50 ms' AS at) AS moment";
const PAST_PHONES: &str = "
INSERT INTO phone (phone, exclusive, quota_1, sends_1, ends_1, quota_2, sends_2, ends_2, quota_3,
    sends_3, ends_3)
SELECT '791' || lpad(n::text, 10, '0'), false, 5, 1, at + interval '1 hour', 10, 1,
    at + interval '1 day', 0, 0, at
FROM generate_series($1::bigint, $2::bigint) AS n,
    LATERAL (SELECT now() - ($3 - n) * interval '50 ms' AS at) AS moment
WHERE at > now() - interval '1 day'";
const WAITING_VERIFICATIONS: &str = "
INSERT INTO verification (id, phone, origin, code_hash, seed, pepper_id, code_length, sequence,
    expires_at)
SELECT id, phone, 'api', decode(md5(phone) || md5(code), 'hex'), decode(md5(phone), 'hex'), 'p1', 6,
    sequence, expires_at
FROM outbox
ON CONFLICT DO NOTHING";
const WAITING_PHONES: &str = "
INSERT INTO phone (phone, newest, newest_until, exclusive, quota_1, sends_1, ends_1, quota_2,
    sends_2, ends_2, quota_3, sends_3, ends_3)
SELECT phone, id, expires_at, false, 0, 0, now(), 0, 0, now(), 0, 0, now()
FROM outbox
ON CONFLICT DO NOTHING";
