//! A database that may not clean up.

use std::time::Duration;

use anyhow::ensure;
use sqlx::Connection;
use tokio::time::Instant;

use super::{
    end,
    end_to_end::{duration, sustain},
    stand,
};
use crate::{
    bench::{
        Setting,
        report::{Found, Row, Spread},
    },
    process::Role,
};

const HELD: Duration = Duration::from_secs(300);

/// All three parts, with and without an old transaction that looks at everything.
pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let stand = stand(setting, (1, 1, 1), &[("LIMIT_PHONE", "off")]).await?;
    stand.start(&Role::ALL).await?;
    let measured = duration(setting);
    let free = sustain(&stand, measured).await?.rate;
    let held = HELD.mul_f64(setting.scale.min(1.0));
    let mut reader = stand.database.acquire().await?;
    let mut old = reader.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let look = "SELECT count(*) FROM outbox";
    let seen: i64 = sqlx::query_scalar(look).fetch_one(&mut *old).await?;
    let begun = Instant::now();
    let mut rates = Vec::new();
    while rates.is_empty() || begun.elapsed() < held {
        rates.push(sustain(&stand, measured).await?.rate);
    }
    let still: i64 = sqlx::query_scalar(look).fetch_one(&mut *old).await?;
    ensure!(still == seen, "the snapshot is gone: {still} rows after {seen}");
    let dead = "SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables";
    let dead = stand.count(dead).await?;
    old.rollback().await?;
    // The end of the stand waits for all connections of its pool.
    drop(reader);
    end(&stand).await?;
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
