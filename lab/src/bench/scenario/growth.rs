//! A database with a past, and one that may not clean up.

use std::time::Duration;

use sqlx::Connection;
use tokio::time::{Instant, sleep};

use super::{
    api, end,
    end_to_end::{duration, sustain},
    relay::fill,
    stand,
};
use crate::{
    bench::{
        Setting,
        http::{closed, rates, submissions},
        report::{Row, Spread},
    },
    process::Role,
    trial::stand::Stand,
};

const CONNECTIONS: usize = 256;
const FINISHED: usize = 10_000_000;
const WAITING: usize = 1_000_000;
const HELD: Duration = Duration::from_secs(300);

pub async fn measure(setting: &Setting) -> anyhow::Result<Vec<Row>> {
    let mut rows = past(setting).await?;
    rows.push(snapshot(setting).await?);
    Ok(rows)
}

/// Accepting into an empty database and into one that is full of messages.
async fn past(setting: &Setting) -> anyhow::Result<Vec<Row>> {
    let (finished, waiting) = (setting.scaled(FINISHED), setting.scaled(WAITING));
    let (empty, full) = (one(setting).await?, one(setting).await?);
    let requests = submissions();
    finish(&full.0, finished).await?;
    fill(&full.0, waiting).await?;
    let (mut before, mut after) = (vec![], vec![]);
    for round in 1..=setting.repeats {
        let first = u64::try_from(round)? << 28;
        for ((_, port), loads) in [(&empty, &mut before), (&full, &mut after)] {
            let load = closed(*port, CONNECTIONS, setting.measured, first, &requests).await?;
            loads.push(load.only_good()?);
        }
    }
    end(&empty.0).await?;
    end(&full.0).await?;
    let figure = format!("requests with {finished} finished, {waiting} waiting messages");
    Ok(vec![
        Row::new("growth", figure, "/s", rates(&after))
            .against("empty", rates(&before))
            .at_least(0.9, 1.0),
    ])
}

async fn one(setting: &Setting) -> anyhow::Result<(Stand, u16)> {
    let stand = stand(setting, (1, 0, 0), &[("LIMIT_PHONE", "off")]).await?;
    let port = api(&stand).await?;
    Ok((stand, port))
}

/// All three parts, with and without an old transaction that looks at everything.
async fn snapshot(setting: &Setting) -> anyhow::Result<Row> {
    let stand = stand(setting, (1, 1, 1), &[("LIMIT_PHONE", "off")]).await?;
    stand.start(&Role::ALL).await?;
    let measured = duration(setting);
    let free = sustain(&stand, measured).await?.rate;
    let held = HELD.mul_f64(setting.scale.min(1.0));
    let mut reader = stand.database.acquire().await?;
    let mut old = reader.begin().await?;
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox")
        .execute(&mut *old)
        .await?;
    let begun = Instant::now();
    let mut rate = sustain(&stand, measured).await?.rate;
    while begun.elapsed() < held {
        rate = sustain(&stand, measured).await?.rate;
        sleep(Duration::from_millis(1)).await;
    }
    old.rollback().await?;
    // The end of the stand waits for all connections of its pool.
    drop(reader);
    end(&stand).await?;
    let figure = format!("messages, a snapshot open for {:.0} s", begun.elapsed().as_secs_f64());
    Ok(Row::new("growth", figure, "/s", Spread::once(rate))
        .against("without it", Spread::once(free))
        .at_least(0.7, 0.9))
}

/// Messages that were sent, over the last days.
async fn finish(stand: &Stand, rows: usize) -> anyhow::Result<()> {
    let sql = "INSERT INTO delivery (group_id, message_id, topic, partition, phone, trace,
            accepted_at, expires_at, due_at, state, attempt, ended_at, code)
        SELECT 'message-group', gen_random_uuid(), 'message', n % 4, '791' || lpad(n::text, 10, '0'),
            '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', at, at + interval '10 minutes',
            at, 'sent', 1, at + interval '5 ms', NULL
        FROM generate_series(1, $1) AS n, LATERAL (SELECT now() - n * interval '50 ms' AS at) AS past";
    sqlx::query(sql).bind(i64::try_from(rows)?).execute(&stand.database).await?;
    sqlx::query("VACUUM ANALYZE delivery").execute(&stand.database).await?;
    Ok(())
}
