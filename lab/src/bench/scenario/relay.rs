//! One processor, a full outbox, Kafka.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use super::{end, stand};
use crate::{
    bench::{
        Setting,
        baseline::producer_performance,
        cost::Usage,
        report::{Found, Row, Spread},
    },
    process::{Role, run_once},
    trial::stand::Stand,
};

pub(super) const ROWS: usize = 500_000;
/// As long as a record of a message is: key, value and headers.
const RECORD: usize = 160;
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let rows = setting.scaled(ROWS);
    let (mut ours, mut claims, mut kafka, mut cost) = (vec![], vec![], vec![], vec![]);
    for _ in 0..setting.repeats {
        let stand = stand(setting, (0, 1, 0), &[]).await?;
        kafka.push(producer_performance(&stand.topic, rows, RECORD).await?);

        fill(&stand, rows).await?;
        let begun = Instant::now();
        let program = setting.examples().join("examples/drain");
        run_once(&program, &[], stand.database_settings(), &setting.folder.join("drain.log"))
            .await
            .context("claim and settle without a broker")?;
        claims.push(rate(rows, begun.elapsed()));
        ensure!(is_empty(&stand).await?, "the drain left something");
        sqlx::query("TRUNCATE in_transit").execute(&stand.database).await?;

        fill(&stand, rows).await?;
        let before = Usage::now(stand.processes(), &stand.database).await?;
        ours.push(drain(&stand, rows).await?);
        let after = Usage::now(stand.processes(), &stand.database).await?;
        #[expect(clippy::cast_precision_loss, reason = "half a million")]
        cost.push(after.since(before, rows as f64));
        let published = stand.count("SELECT count(*) FROM in_transit").await?;
        ensure!(usize::try_from(published)? == rows, "{published} of {rows} are in transit");
        let records = stand.topic.length().await?;
        ensure!(records == 2 * rows, "{records} records for {rows} messages and as many before");
        end(&stand).await?;
    }
    let (ours, claims, kafka) = (Spread::of(ours), Spread::of(claims), Spread::of(kafka));
    let slower = if claims.median < kafka.median {
        ("claims and settles without a broker", claims)
    } else {
        ("ProducerPerformance, acks=all", kafka)
    };
    let each = |part: fn(&Usage) -> f64| Spread::of(cost.iter().map(part).collect());
    let rate = || Row::new("relay", format!("{rows} rows by one processor"), "/s", ours);
    let rows = vec![
        rate().against(slower.0, slower.1).at_least(0.5, 0.8),
        rate().at_least(20_000.0, 60_000.0),
        Row::new("relay", "claims and settles without a broker", "/s", claims),
        Row::new("relay", "ProducerPerformance, acks=all", "/s", kafka),
        Row::new("relay", "CPU of processor a message", "µs", each(Usage::ours)),
        Row::new("relay", "CPU of PostgreSQL a message", "µs", each(|it| it.postgres)),
        Row::new("relay", "WAL a message", "bytes", each(|it| it.wal_bytes)),
        Row::new("relay", "commits a message", "", each(|it| it.commits)),
    ];
    Ok(rows.into())
}

/// Starts the processors; how many of so many rows a second they publish.
pub(super) async fn drain(stand: &Stand, rows: usize) -> anyhow::Result<f64> {
    let begun = Instant::now();
    stand.start(&[Role::Processor]).await?;
    while !is_empty(stand).await? {
        ensure!(begun.elapsed() < PATIENCE, "the outbox is not empty after {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(rate(rows, begun.elapsed()))
}

/// Messages as the API stores them, to phones of their own.
pub(super) async fn fill(stand: &Stand, rows: usize) -> anyhow::Result<()> {
    let sql = "INSERT INTO outbox (id, phone, code, trace, expires_at)
        SELECT gen_random_uuid(), '790' || lpad(n::text, 10, '0'), '482915',
            '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', now() + interval '1 day'
        FROM generate_series(1, $1) AS n";
    sqlx::query(sql).bind(i64::try_from(rows)?).execute(&stand.database).await?;
    // As autovacuum would have seen to while they came one by one.
    sqlx::query("VACUUM ANALYZE outbox").execute(&stand.database).await?;
    Ok(())
}

async fn is_empty(stand: &Stand) -> anyhow::Result<bool> {
    Ok(stand.count("SELECT count(*) FROM (SELECT FROM outbox LIMIT 1) AS one").await? == 0)
}

#[expect(clippy::cast_precision_loss, reason = "half a million")]
fn rate(rows: usize, duration: Duration) -> f64 {
    rows as f64 / duration.as_secs_f64()
}
