//! One processor publishes a full outbox to Kafka.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use super::{end, prepare};
use crate::{
    bench::{
        Setting,
        baseline::producer_performance,
        cost::Usage,
        debezium::{self, Drained},
        report::{Found, Row, Spread},
    },
    kit::{
        process::{Role, run_once},
        progress::say,
        tables,
        tally::Tally,
        testbed::Testbed,
    },
};

pub(super) const ROWS: usize = 500_000;
/// The size of a message's record: key, value and headers.
const RECORD: usize = 160;
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let rows = setting.scaled(ROWS);
    let libs = debezium::jars();
    if libs.is_none() {
        say("  without Debezium: TEST_DEBEZIUM is not set (`scripts/services debezium`)");
    }
    let mut debeziums = Vec::new();
    let (mut ours, mut alone, mut kafka, mut cost) = (vec![], vec![], vec![], vec![]);
    for _ in 0..setting.repeats {
        let testbed = prepare(setting, (0, 1, 0), &[]).await?;
        kafka.push(producer_performance(&testbed.topic, rows, RECORD).await?);

        fill(&testbed, rows).await?;
        let begun = Instant::now();
        let program = setting.examples().join("examples/drain");
        run_once(&program, &[], testbed.database_settings(), &setting.folder.join("drain.log"))
            .await
            .context("relay without a broker")?;
        alone.push(rate(rows, begun.elapsed()));
        ensure!(tables::is_published(&testbed.database).await?, "the drain left rows");
        sqlx::query("TRUNCATE outbox").execute(&testbed.database).await?;

        if let Some(libs) = &libs {
            let drained = debezium::drain(&testbed, &setting.folder, libs, 2 * rows).await;
            debeziums.push(drained.context("Debezium")?);
        }

        fill(&testbed, rows).await?;
        let before = Usage::now(testbed.processes.iter(), &testbed.database).await?;
        ours.push(drain(&testbed, rows).await?);
        let after = Usage::now(testbed.processes.iter(), &testbed.database).await?;
        #[expect(clippy::cast_precision_loss, reason = "half a million")]
        cost.push(after.since(before, rows as f64));
        let records = testbed.topic.length().await?;
        ensure!(
            records == 2 * rows,
            "{records} records for {rows} messages and as many of the baseline"
        );
        end(&testbed).await?;
    }
    let (ours, alone, kafka) = (Spread::of(ours), Spread::of(alone), Spread::of(kafka));
    let slower = if alone.median < kafka.median {
        ("relay without a broker", alone)
    } else {
        ("ProducerPerformance, acks=all", kafka)
    };
    let each = |part: fn(&Usage) -> f64| Spread::of(cost.iter().map(part).collect());
    let rate = || Row::new("relay", format!("{rows} rows by one processor"), "/s", ours);
    let mut rows = vec![
        rate().against(slower.0, slower.1).at_least(0.5, 0.8),
        rate().at_least(20_000.0, 60_000.0),
        Row::new("relay", "relay without a broker", "/s", alone),
        Row::new("relay", "ProducerPerformance, acks=all", "/s", kafka),
        Row::new("relay", "CPU of processor a message", "µs", each(Usage::ours)),
        Row::new("relay", "CPU of PostgreSQL a message", "µs", each(|it| it.postgres))
            .at_most(10.0, 3.0),
        Row::new("relay", "WAL a message", "bytes", each(|it| it.wal_bytes)),
        Row::new("relay", "commits a message", "", each(|it| it.commits)),
    ];
    if !debeziums.is_empty() {
        let each = |part: fn(&Drained) -> f64| Spread::of(debeziums.iter().map(part).collect());
        let best = ("Debezium, its best 10 s", each(|it| it.best));
        rows.insert(0, rate().against(best.0, best.1).at_least(1.0, 2.0));
        rows.push(Row::new("relay", "Debezium, from 2 % to the end", "/s", each(|it| it.rate)));
        rows.push(Row::new("relay", "CPU of Debezium a message", "µs", each(|it| it.cpu)));
    }
    Ok(rows.into())
}

/// Starts the processors. Returns how many rows a second they publish.
pub(super) async fn drain(testbed: &Testbed<Tally>, rows: usize) -> anyhow::Result<f64> {
    let begun = Instant::now();
    testbed.start(&[Role::Processor]).await?;
    while !tables::is_published(&testbed.database).await? {
        ensure!(begun.elapsed() < PATIENCE, "the outbox is not published after {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(rate(rows, begun.elapsed()))
}

/// Adds messages like those of the API, each to another phone.
pub(super) async fn fill(testbed: &Testbed<Tally>, rows: usize) -> anyhow::Result<()> {
    let sql = "INSERT INTO outbox (id, phone, code, trace, expires_at)
        SELECT gen_random_uuid(), '790' || lpad(n::text, 10, '0'), '482915',
            '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', now() + interval '1 day'
        FROM generate_series(1, $1) AS n";
    sqlx::query(sql).bind(i64::try_from(rows)?).execute(&testbed.database).await?;
    // As autovacuum does while messages come one by one.
    sqlx::query("VACUUM ANALYZE outbox").execute(&testbed.database).await?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "half a million")]
fn rate(rows: usize, duration: Duration) -> f64 {
    rows as f64 / duration.as_secs_f64()
}
