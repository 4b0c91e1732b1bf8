//! `/v1`: beginning verifications and checking codes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use sqlx::AssertSqlSafe;
use tokio::time::sleep;

use super::{api, end, pgbench, stand};
use crate::{
    bench::{
        Setting,
        baseline::{CLIENTS, EACH_ROW},
        http::{Requests, closed, each, post, rates},
        report::{Found, Row, Spread},
        statements::{Log, Statements},
    },
    trial::stand::Stand,
};

const CONNECTIONS: usize = 256;
/// Verifications for one number of clients in one round, if there are so many.
const SHARE: usize = 25_600;
const PATIENCE: Duration = Duration::from_secs(20);
/// More than a log takes to be written.
const LOGGED: Duration = Duration::from_millis(500);

/// A verification that waits for its code.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Begun {
    id: String,
    phone: String,
    code: String,
}

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    // Numbers follow each other and no code is checked: that is pumping. In shadow mode the guard
    // works as hard and lets all pass.
    let settings = [("API_AUTH", "none"), ("GUARD", "shadow"), ("LIMIT_PREFIX", "off")];
    let stand = stand(setting, (1, 0, 0), &settings).await?;
    let port = api(&stand).await?;
    let (old, new) = (legacy(), starts());
    let (mut legacy, mut ours) = (vec![], vec![]);
    closed(port, CONNECTIONS, setting.measured / 4, 0, &new).await?;
    for round in 1..=setting.repeats {
        // Numbers that were used by no other round: each is within its limits.
        let first = u64::try_from(round)? * 1_000_000;
        legacy.push(closed(port, CONNECTIONS, setting.measured, first, &old).await?.only_good()?);
        let load = closed(port, CONNECTIONS, setting.measured, first + 500_000, &new).await?;
        ours.push(load.only_good()?);
    }

    let (checks, statements) = checks(setting, &stand, port).await?;
    end(&stand).await?;
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

/// Checks a second, and how often pgbench does in a second what a check does in the database.
///
/// Both have verifications of their own, which the API has begun, and each is approved once.
async fn checks(setting: &Setting, stand: &Stand, port: u16) -> anyhow::Result<(Spread, Spread)> {
    // The newest last: they are good for longest.
    let sql = "SELECT it.id::text AS id, it.phone, code
        FROM outbox JOIN verification AS it ON it.sequence = outbox.sequence
        WHERE it.origin = 'v1'
        ORDER BY it.created_at";
    let mut codes: Vec<Begun> = sqlx::query_as(sql).fetch_all(&stand.database).await?;
    let sample = codes.pop().context("no verification was begun")?;
    let hash = "SELECT code_hash FROM verification WHERE id = $1::uuid";
    let hash = sqlx::query_scalar(hash).bind(&sample.id).fetch_one(&stand.database).await?;
    let statements = statements_of_a_check(stand, port, &sample).await?;

    // In each round ours takes as many as pgbench does for all numbers of clients.
    let share = (codes.len() / setting.repeats / 2 / CLIENTS.len()).min(setting.scaled(SHARE));
    let (theirs, ours) = codes.split_at(share * CLIENTS.len() * setting.repeats);
    number(stand, theirs.iter().map(|begun| begun.id.clone()).collect(), hash).await?;
    let script = format!("{EACH_ROW}{statements}");
    let pgbench = pgbench(setting, stand, &script);
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
    let approved = usize::try_from(stand.count(sql).await?)?;
    // And the sample's.
    ensure!(approved == done + 1, "{done} right codes were checked, {approved} are approved");
    Ok((Spread::of(rates), Spread::of(baseline)))
}

/// What the service does in the database for one right code, as a script for pgbench: taken from
/// the server's log, so that it is whatever the service does. Restarts the API.
async fn statements_of_a_check(stand: &Stand, port: u16, sample: &Begun) -> anyhow::Result<String> {
    let verbose = format!("ALTER DATABASE {} SET log_statement = 'all'", stand.name);
    restart(stand, verbose).await?;
    let log = Log::from_now_on(stand.postgres.log())?;
    each(port, 1, 0..1, &guesses(vec![sample.clone()])).await?.only_good()?;
    sleep(LOGGED).await;
    let statements = Statements::about(&[&sample.id, &sample.phone], &log.read()?)?;
    restart(stand, format!("ALTER DATABASE {} RESET log_statement", stand.name)).await?;
    // As `number` numbers them.
    Ok(statements.with(&[
        (&sample.id, "md5(:row::text)::uuid"),
        (&sample.phone, "('7888' || lpad(:row::text, 7, '0'))"),
    ]))
}

/// Gives verifications ids and phones that pgbench can make of their numbers, and the hash that the
/// sample's right code has.
async fn number(stand: &Stand, ids: Vec<String>, hash: Vec<u8>) -> anyhow::Result<()> {
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
    sqlx::query(sql).bind(ids).bind(hash).execute(&stand.database).await?;
    sqlx::query("VACUUM ANALYZE").execute(&stand.database).await?;
    Ok(())
}

/// Ends the API, changes the database, and starts the API again.
async fn restart(stand: &Stand, sql: String) -> anyhow::Result<()> {
    for process in stand.processes() {
        process.terminate(PATIENCE).await;
    }
    sqlx::query(AssertSqlSafe(sql)).execute(&stand.database).await?;
    api(stand).await?;
    Ok(())
}

/// A Russian mobile number of its own for each.
fn phone(number: u64) -> String {
    format!("7999{:07}", number % 10_000_000)
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

/// Right codes, by the ids of their verifications.
fn guesses(codes: Vec<Begun>) -> Requests {
    Arc::new(move |number, request| {
        let place = usize::try_from(number).unwrap_or(usize::MAX) % codes.len().max(1);
        let Some(Begun { id, code, .. }) = codes.get(place) else { return };
        let path = format!("/v1/verifications/ver_{}/checks", id.replace('-', ""));
        post(request, &path, &format!("{{\"code\":\"{code}\"}}"));
    })
}
