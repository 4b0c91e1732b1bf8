//! `/v1`: starts of verifications, and checks.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use sqlx::AssertSqlSafe;
use tokio::time::sleep;

use super::{api, end, pgbench, prepare};
use crate::{
    bench::{
        Setting,
        baseline::{CLIENTS, EACH_ROW},
        measure::{Requests, closed, each, rates},
        report::{Found, Row, Spread},
        statements::{Log, Statements},
    },
    kit::{
        http::post,
        tables::{self, read_from_rows},
        tally::Tally,
        testbed::Testbed,
    },
};

const CONNECTIONS: usize = 256;
/// Verifications for one number of clients in one round, if there are enough.
const SHARE: usize = 25_600;
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for the log to be written.
const LOGGED: Duration = Duration::from_millis(500);

/// A pending verification.
#[derive(Debug, Clone)]
struct Begun {
    id: String,
    phone: String,
    code: String,
}

read_from_rows!(Begun: id, phone, code);

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    // So many sends without a check look like pumping. In shadow mode the guard does the same work
    // and lets all requests pass. The limits have their defaults.
    let settings = [("API_AUTH", "none"), ("GUARD", "shadow")];
    let testbed = prepare(setting, (1, 0, 0), &settings).await?;
    let port = api(&testbed).await?;
    let (old, new) = (legacy(), starts());
    let (mut legacy, mut ours) = (vec![], vec![]);
    closed(port, CONNECTIONS, setting.measured / 4, 0, &new).await?;
    for round in 1..=setting.repeats {
        // No other round uses these numbers, so that each is within its limits.
        let first = u64::try_from(round)? * 1_000_000;
        legacy.push(closed(port, CONNECTIONS, setting.measured, first, &old).await?.only_good()?);
        let load = closed(port, CONNECTIONS, setting.measured, first + 500_000, &new).await?;
        ours.push(load.only_good()?);
    }

    let (checks, statements) = checks(setting, &testbed, port).await?;
    end(&testbed).await?;
    let rows = vec![
        Row::new("verification", "POST /v1/verifications, default limits", "/s", rates(&ours))
            .against("POST /api, default limits", rates(&legacy))
            .at_least(0.7, 0.9),
        Row::new("verification", "checks, each right", "/s", checks)
            .against("pgbench with the same statements", statements)
            .at_least(0.7, 1.0),
    ];
    Ok(rows.into())
}

/// Measures checks a second, and how often a second pgbench runs the statements of a check.
///
/// Both have verifications of their own, which the API has started. Each is approved once.
async fn checks(
    setting: &Setting,
    testbed: &Testbed<Tally>,
    port: u16,
) -> anyhow::Result<(Spread, Spread)> {
    // The newest last: they expire last.
    let sql = "SELECT it.id::text AS id, it.phone, code
        FROM outbox JOIN verification AS it ON it.sequence = outbox.sequence
        WHERE it.origin = 'v1'
        ORDER BY it.created_at";
    let mut codes: Vec<Begun> = sqlx::query_as(sql).fetch_all(&testbed.database).await?;
    let sample = codes.pop().context("no verification was started")?;
    let hash = "SELECT code_hash FROM verification WHERE id = $1::uuid";
    let hash = sqlx::query_scalar(hash).bind(&sample.id).fetch_one(&testbed.database).await?;
    let statements = statements_of_a_check(testbed, port, &sample).await?;

    // In each round the service gets as many as pgbench for all numbers of clients.
    let share = (codes.len() / setting.repeats / 2 / CLIENTS.len()).min(setting.scaled(SHARE));
    let (theirs, ours) = codes.split_at(share * CLIENTS.len() * setting.repeats);
    number(testbed, theirs.iter().map(|begun| begun.id.clone()).collect(), hash).await?;
    let script = format!("{EACH_ROW}{statements}");
    let pgbench = pgbench(setting, testbed, &script);
    let requests = guesses(ours.to_vec());
    let (mut rates, mut baseline) = (vec![], vec![]);
    let (mut first, mut turn, mut done) = (0, 0, 0);
    for _ in 0..setting.repeats {
        let mut best: f64 = 0.0;
        for clients in CLIENTS {
            let found = pgbench.each(clients, first, share).await?;
            best = best.max(found.per_second);
            done += found.done;
            first += share;
        }
        baseline.push(best);
        let next = turn + u64::try_from(share * CLIENTS.len())?;
        let load = each(port, CONNECTIONS, turn..next, &requests).await?.only_good()?;
        turn = next;
        done += load.good();
        rates.push(load.rate());
    }
    let sql = "SELECT count(*) FROM verification WHERE status = 'approved'";
    let approved = usize::try_from(tables::count(&testbed.database, sql).await?)?;
    // The sample is approved, too.
    ensure!(
        approved == done + 1,
        "{done} right codes were checked, {approved} verifications are approved"
    );
    Ok((Spread::of(rates), Spread::of(baseline)))
}

/// Returns the statements of the service for one right code, as a script for pgbench. They come
/// from the server's log, so that they are those of the service. Restarts the API.
async fn statements_of_a_check(
    testbed: &Testbed<Tally>,
    port: u16,
    sample: &Begun,
) -> anyhow::Result<String> {
    let verbose = format!("ALTER DATABASE {} SET log_statement = 'all'", testbed.name);
    restart(testbed, verbose).await?;
    let log = Log::from_now_on(testbed.postgres.log())?;
    each(port, 1, 0..1, &guesses(vec![sample.clone()])).await?.only_good()?;
    sleep(LOGGED).await;
    let statements = Statements::about(&[&sample.id, &sample.phone], &log.read()?)?;
    restart(testbed, format!("ALTER DATABASE {} RESET log_statement", testbed.name)).await?;
    // The ids and phones that `number` gives.
    Ok(statements.with(&[
        (&sample.id, "md5(:row::text)::uuid"),
        (&sample.phone, "('7888' || lpad(:row::text, 7, '0'))"),
    ]))
}

/// Gives verifications ids and phones that pgbench can compute from their numbers, and the hash of
/// the sample's code.
async fn number(testbed: &Testbed<Tally>, ids: Vec<String>, hash: Vec<u8>) -> anyhow::Result<()> {
    let sql = "WITH numbered AS (
            SELECT id, md5((place - 1)::text)::uuid AS other,
                '7888' || lpad((place - 1)::text, 7, '0') AS other_phone
            FROM unnest($1::uuid[]) WITH ORDINALITY AS it (id, place)
        ), pointed AS (
            UPDATE phone SET phone = other_phone, newest = other FROM numbered WHERE newest = id
        )
        UPDATE verification SET phone = other_phone, id = other, code_hash = $2
        FROM numbered
        WHERE verification.id = numbered.id";
    sqlx::query(sql).bind(ids).bind(hash).execute(&testbed.database).await?;
    sqlx::query("VACUUM ANALYZE").execute(&testbed.database).await?;
    Ok(())
}

/// Stops the API, changes the database, and starts the API again.
async fn restart(testbed: &Testbed<Tally>, sql: String) -> anyhow::Result<()> {
    for process in &testbed.processes {
        process.terminate(PATIENCE).await;
    }
    sqlx::query(AssertSqlSafe(sql)).execute(&testbed.database).await?;
    api(testbed).await?;
    Ok(())
}

/// Returns another Russian mobile number for each number below 100 million.
///
/// The digits are reversed, so that consecutive numbers have different prefixes: the limit by
/// prefix stays on, and no prefix reaches it.
fn phone(number: u64) -> String {
    let digits = format!("{:08}", number % 100_000_000);
    let reversed: String = digits.chars().rev().collect();
    format!("799{reversed}")
}

fn legacy() -> Requests {
    Arc::new(|number, request| {
        post(request, "/api/", &format!("{{\"phone\":\"{}\"}}", phone(number)));
    })
}

fn starts() -> Requests {
    Arc::new(|number, request| {
        post(request, "/v1/verifications", &format!("{{\"phone\":\"+{}\"}}", phone(number)));
    })
}

/// Returns checks of right codes, by the ids of their verifications.
fn guesses(codes: Vec<Begun>) -> Requests {
    Arc::new(move |number, request| {
        let place = usize::try_from(number).unwrap_or(usize::MAX) % codes.len().max(1);
        let Some(Begun { id, code, .. }) = codes.get(place) else { return };
        let path = format!("/v1/verifications/ver_{}/checks", id.replace('-', ""));
        post(request, &path, &format!("{{\"code\":\"{code}\"}}"));
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn a_million_consecutive_phones_differ_and_stay_below_the_limit_by_prefix() {
        const LIMIT_PREFIX: usize = 1_000;
        let phones: BTreeSet<String> = (1_000_000..2_000_000).map(phone).collect();

        let mut prefixes: BTreeMap<&str, usize> = BTreeMap::new();
        for phone in &phones {
            *prefixes.entry(&phone[..phone.len() - 4]).or_default() += 1;
        }

        assert_eq!(phones.len(), 1_000_000);
        assert!(prefixes.values().all(|count| *count < LIMIT_PREFIX / 4));
    }
}
