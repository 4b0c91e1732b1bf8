//! A database that cannot clean up while a snapshot is open.

use std::time::Duration;

use anyhow::ensure;
use sqlx::Connection;
use tokio::time::Instant;

use super::{
    end,
    end_to_end::{duration, sustain},
    prepare,
};
use crate::{
    bench::{
        Setting,
        report::{Found, Row, Spread},
    },
    kit::{process::Role, tables},
};

const HELD: Duration = Duration::from_secs(300);

/// Measures all three parts with and without an old transaction that sees all rows.
pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let testbed = prepare(setting, (1, 1, 1), &[("LIMIT_PHONE", "off")]).await?;
    testbed.start(&Role::ALL).await?;
    let measured = duration(setting);
    let free = sustain(&testbed, measured).await?.rate;
    let held = HELD.mul_f64(setting.scale.min(1.0));
    let mut reader = testbed.database.acquire().await?;
    let mut old = reader.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let look = "SELECT count(*) FROM outbox";
    let seen: i64 = sqlx::query_scalar(look).fetch_one(&mut *old).await?;
    let begun = Instant::now();
    let mut rates = Vec::new();
    while rates.is_empty() || begun.elapsed() < held {
        rates.push(sustain(&testbed, measured).await?.rate);
    }
    let still: i64 = sqlx::query_scalar(look).fetch_one(&mut *old).await?;
    ensure!(still == seen, "the snapshot is gone: {still} rows after {seen}");
    let dead = "SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables";
    let dead = tables::count(&testbed.database, dead).await?;
    old.rollback().await?;
    // `end` waits for all connections of the pool.
    drop(reader);
    end(&testbed).await?;
    let last = Spread::once(rates.last().copied().unwrap_or(f64::NAN));
    let row = |figure: String, unit, found| Row::new("snapshot", figure, unit, found);
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    let dead = Spread::once(dead as f64);
    let rows = vec![
        row(format!("messages, after {:.0} s of a snapshot", held.as_secs_f64()), "/s", last)
            .against("without it", Spread::once(free))
            .at_least(0.7, 0.9),
        row("messages, all the time of the snapshot".to_owned(), "/s", Spread::of(rates)),
        row("dead tuples at the end of the snapshot".to_owned(), "", dead),
    ];
    Ok(rows.into())
}
