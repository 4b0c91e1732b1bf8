//! Debezium's PostgreSQL connector with its outbox router, in Kafka Connect: a common way to empty
//! an outbox.

use std::{
    fs::File,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ports::free_port;
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use super::cost::cpu_time;
use crate::kit::{
    environment::variable,
    kafka::Topic,
    tally::Tally,
    testbed::{PARTITIONS, Testbed},
};

/// How fast Debezium emptied an outbox, and at what cost.
#[derive(Debug, Clone, Copy)]
pub struct Drained {
    /// Rows a second, without the first fiftieth: Kafka Connect takes a while to start.
    pub rate: f64,
    /// Rows a second in its best ten seconds: the JVM takes a while to warm up.
    pub best: f64,
    /// The CPU time of Kafka Connect per row, in microseconds, without the first fiftieth.
    pub cpu: f64,
}

/// The records of the topic after so many seconds, and the CPU time so far in microseconds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: f64,
    records: usize,
    cpu: f64,
}

const BEST: f64 = 10.0;
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(200);

/// The router's usual table.
const TABLE: &str = "
CREATE TABLE bench_debezium (
    id uuid PRIMARY KEY,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    payload jsonb NOT NULL
);
CREATE PUBLICATION bench_debezium FOR TABLE bench_debezium;
";

/// The slot is created before the rows, so that it sees all of them.
const SLOT: &str = "SELECT pg_create_logical_replication_slot('bench_debezium', 'pgoutput')";

/// Rows like those of [`super::scenario::relay::fill`].
const FILL: &str = "INSERT INTO bench_debezium
    SELECT gen_random_uuid(), 'sms', phone, 'sms', jsonb_build_object('phone', phone,
        'code', '482915', 'trace', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
        'expires_at', now() + interval '1 day')
    FROM (SELECT '790' || lpad(n::text, 10, '0') AS phone FROM generate_series(1, $1) AS n) AS new";

/// Returns the folder of Debezium's jars, if the environment names one.
pub fn jars() -> Option<String> {
    variable("TEST_DEBEZIUM").ok()
}

/// Lets Debezium, whose jars are in `libs`, publish so many rows.
///
/// Restarts PostgreSQL with logical decoding, and again without it.
pub async fn drain(
    testbed: &Testbed<Tally>,
    folder: &Path,
    libs: &str,
    rows: usize,
) -> anyhow::Result<Drained> {
    testbed.postgres.start_over("-c wal_level=logical").await?;
    let drained = drain_by_log(testbed, folder, libs, rows).await;
    // A connector that has ended may hold its slot for a moment.
    let sql = "SELECT pg_drop_replication_slot('bench_debezium')";
    let dropped = async {
        for _ in 0..50 {
            if sqlx::query(sql).execute(&testbed.database).await.is_ok() {
                break;
            }
            sleep(PAUSE).await;
        }
    };
    dropped.await;
    testbed.postgres.start_over("").await?;
    drained
}

async fn drain_by_log(
    testbed: &Testbed<Tally>,
    folder: &Path,
    libs: &str,
    rows: usize,
) -> anyhow::Result<Drained> {
    sqlx::raw_sql(TABLE).execute(&testbed.database).await.context("create its table")?;
    sqlx::query(SLOT).execute(&testbed.database).await.context("create its slot")?;
    sqlx::query(FILL).bind(i64::try_from(rows)?).execute(&testbed.database).await?;
    let topic = testbed.kafka.topic(format!("{}_debezium", testbed.name));
    topic.create(PARTITIONS).await?;
    let mut connect = start(testbed, folder, libs, &topic)?;
    let samples = watch(&mut connect, &topic, rows).await;
    connect.kill().await?;
    Ok(judge(&samples?, rows))
}

fn start(
    testbed: &Testbed<Tally>,
    folder: &Path,
    libs: &str,
    topic: &Topic,
) -> anyhow::Result<Child> {
    let setting = |name: &str| {
        let mut settings = testbed.database_settings().iter();
        settings.find(|(known, _)| known == name).map(|(_, value)| value.as_str()).context("unset")
    };
    let worker = format!(
        "bootstrap.servers={kafka}\n\
        listeners=http://127.0.0.1:{port}\n\
        plugin.discovery=only_scan\n\
        key.converter=org.apache.kafka.connect.storage.StringConverter\n\
        value.converter=org.apache.kafka.connect.json.JsonConverter\n\
        value.converter.schemas.enable=false\n\
        offset.storage.file.filename={offsets}\n\
        producer.acks=all\n\
        producer.linger.ms=5\n\
        producer.batch.size=131072\n",
        kafka = testbed.kafka.address(),
        port = free_port(),
        offsets = folder.join("connect.offsets").display(),
    );
    let connector = format!(
        "name=outbox\n\
        connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
        tasks.max=1\n\
        database.hostname={host}\n\
        database.port={port}\n\
        database.user={user}\n\
        database.password={password}\n\
        database.dbname={database}\n\
        topic.prefix=bench\n\
        plugin.name=pgoutput\n\
        slot.name=bench_debezium\n\
        publication.name=bench_debezium\n\
        publication.autocreate.mode=disabled\n\
        snapshot.mode=no_data\n\
        table.include.list=public.bench_debezium\n\
        tombstones.on.delete=false\n\
        max.batch.size=8192\n\
        max.queue.size=32768\n\
        transforms=outbox\n\
        transforms.outbox.type=io.debezium.transforms.outbox.EventRouter\n\
        transforms.outbox.route.topic.replacement={topic}\n\
        transforms.outbox.table.expand.json.payload=true\n",
        host = setting("POSTGRES_HOST")?,
        port = setting("POSTGRES_PORT")?,
        user = setting("POSTGRES_USER")?,
        password = setting("POSTGRES_PASSWORD")?,
        database = setting("POSTGRES_DB")?,
        topic = topic.name,
    );
    let files = [("connect.properties", worker), ("connector.properties", connector)];
    let _ = std::fs::remove_file(folder.join("connect.offsets"));
    let log = File::create(folder.join("connect.log"))?;
    let mut java = Command::new(variable("TEST_JAVA")?);
    java.args(["-Xmx1g", "-cp", &format!("{libs}/*:{}/*", variable("TEST_KAFKA_LIBS")?)])
        .arg("org.apache.kafka.connect.cli.ConnectStandalone");
    for (name, text) in files {
        let file = folder.join(name);
        std::fs::write(&file, text)?;
        java.arg(file);
    }
    java.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    java.spawn().context("start Kafka Connect")
}

/// Looks at the end of the topic until all rows are in it.
async fn watch(connect: &mut Child, topic: &Topic, rows: usize) -> anyhow::Result<Vec<Sample>> {
    let pid = connect.id().context("Kafka Connect has ended")?;
    let begun = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    while samples.last().is_none_or(|last| last.records < rows) {
        sleep(PAUSE).await;
        let ended = connect.try_wait()?;
        ensure!(ended.is_none(), "Kafka Connect has ended: {ended:?}, see connect.log");
        ensure!(begun.elapsed() < PATIENCE, "not all rows are published after {PATIENCE:?}");
        let records = topic.length().await?;
        let cpu = cpu_time(pid).context("Kafka Connect has ended")?;
        samples.push(Sample { at: begun.elapsed().as_secs_f64(), records, cpu });
    }
    Ok(samples)
}

#[expect(clippy::cast_precision_loss, reason = "a million")]
fn judge(samples: &[Sample], rows: usize) -> Drained {
    let begin = samples.iter().position(|sample| sample.records >= rows / 50).unwrap_or(0);
    let samples = &samples[begin..];
    let rate = |from: &Sample, to: &Sample| (to.records - from.records) as f64 / (to.at - from.at);
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return Drained { rate: f64::NAN, best: f64::NAN, cpu: f64::NAN };
    };
    let windows = samples.iter().filter_map(|from| {
        let to = samples.iter().find(|to| to.at >= from.at + BEST)?;
        Some(rate(from, to))
    });
    let whole = rate(first, last);
    Drained {
        rate: whole,
        best: windows.fold(whole, f64::max),
        cpu: (last.cpu - first.cpu) / (last.records - first.records) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_ten_seconds_count_beside_the_whole() {
        let sample = |(at, records): (f64, u32)| Sample {
            at,
            records: records as usize,
            cpu: f64::from(records) * 30.0,
        };
        // Nothing for 10 s, then 10 rows a second for 20 s, then 40 a second for 20 s.
        let samples = [(0.0, 0), (10.0, 0), (20.0, 100), (30.0, 200), (40.0, 600), (50.0, 1_000)];

        let drained = judge(&samples.map(sample), 1_000);

        assert!((drained.rate - 30.0).abs() < 0.1, "{drained:?}");
        assert!((drained.best - 40.0).abs() < 0.1, "{drained:?}");
        assert!((drained.cpu - 30.0).abs() < 0.1, "{drained:?}");
    }
}
