//! Baselines: what PostgreSQL and Kafka do alone.

use std::{io::Write, path::Path, time::Duration};

use anyhow::Context;
use tokio::process::Command;

use crate::kit::{environment::variable, kafka::Topic, postgres::Postgres};

/// pgbench with one script.
#[derive(Debug)]
pub struct PgBench<'a> {
    pub postgres: &'a Postgres,
    pub database: &'a str,
    pub script: &'a str,
    pub folder: &'a Path,
}

/// The result of pgbench.
#[derive(Debug, Clone, Copy)]
pub struct Transactions {
    pub per_second: f64,
    /// Mean latency in milliseconds.
    pub latency: f64,
    pub done: usize,
}

/// Numbers of connections to try. Which is best depends on the machine.
pub const CLIENTS: [usize; 3] = [16, 64, 128];

/// The beginning of a script for [`PgBench::each`].
pub const EACH_ROW: &str = "\\set row :client_id * :share + :turn
\\set turn :turn + 1
";

/// One commit of one outbox row, as a simple service would make it.
pub const INSERT: &str = "\\set phone random(0, 9999999999)
INSERT INTO bench_outbox (id, phone, code, trace, expires_at)
VALUES (gen_random_uuid(), '790' || lpad((:phone)::text, 10, '0'), '482915',
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', now() + interval '10 minutes');
";

impl PgBench<'_> {
    /// Runs prepared statements on so many connections.
    pub async fn run(&self, clients: usize, duration: Duration) -> anyhow::Result<Transactions> {
        self.measure(clients, &["-T", &duration.as_secs().max(3).to_string()]).await
    }

    /// Runs the script once with each value of `:row` from `first` on: `rows` of them, or a few
    /// fewer, so that each connection runs as many.
    pub async fn each(
        &self,
        clients: usize,
        first: usize,
        rows: usize,
    ) -> anyhow::Result<Transactions> {
        let share = rows / clients;
        let variables = [format!("share={share}"), format!("turn={first}")];
        let [share_is, turn_is] = &variables;
        self.measure(clients, &["-t", &share.to_string(), "-D", share_is, "-D", turn_is]).await
    }

    /// Runs prepared statements at a steady rate, and returns the latencies in microseconds, the
    /// shortest first. Each counts from when its transaction was due.
    pub async fn open(
        &self,
        clients: usize,
        rate: f64,
        duration: Duration,
    ) -> anyhow::Result<Vec<u32>> {
        let prefix = self.folder.join("pgbench-log");
        let (log, rate) = (format!("--log-prefix={}", prefix.display()), rate.to_string());
        let seconds = duration.as_secs().max(3).to_string();
        self.measure(clients, &["-T", &seconds, "-R", &rate, "-l", &log]).await?;
        // A file of each thread, named after the process. Its lines are "client transaction latency …".
        let mut latencies = Vec::new();
        for file in std::fs::read_dir(self.folder)? {
            let file = file?.path();
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with("pgbench-log.") {
                continue;
            }
            let text = std::fs::read_to_string(&file)?;
            let latency = |line: &str| line.split(' ').nth(2)?.parse::<u32>().ok();
            latencies.extend(text.lines().filter_map(latency));
            std::fs::remove_file(file)?;
        }
        latencies.sort_unstable();
        Ok(latencies)
    }

    async fn measure(&self, clients: usize, how_long: &[&str]) -> anyhow::Result<Transactions> {
        let script = self.folder.join("pgbench.sql");
        std::fs::File::create(&script)?.write_all(self.script.as_bytes())?;
        let program = format!("{}/pgbench", variable("TEST_PG_BIN")?);
        let clients = clients.to_string();
        let output = Command::new(program)
            .args(["-n", "-M", "prepared", "-c", &clients, "-j", "2"])
            .args(how_long)
            .arg("-f")
            .arg(&script)
            .args(self.postgres.client_args(self.database))
            .envs(self.postgres.client_env())
            .env("LC_ALL", "C")
            .output()
            .await
            .context("run pgbench")?;
        let told = String::from_utf8_lossy(&output.stdout);
        let number = |start: &str| {
            let line = told.lines().find_map(|line| line.strip_prefix(start))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let found = || {
            Some(Transactions {
                per_second: number("tps = ")?,
                latency: number("latency average = ")?,
                done: done(&told)?,
            })
        };
        found()
            .with_context(|| format!("pgbench: {told}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Returns the highest rate with any of [`CLIENTS`].
    pub async fn best(&self, duration: Duration) -> anyhow::Result<f64> {
        let mut best: f64 = 0.0;
        for clients in CLIENTS {
            best = best.max(self.run(clients, duration).await?.per_second);
        }
        Ok(best)
    }
}

/// Returns the records a second of Kafka's own load generator, acknowledged by all replicas.
pub async fn producer_performance(
    topic: &Topic,
    records: usize,
    record_bytes: usize,
) -> anyhow::Result<f64> {
    let output = Command::new(variable("TEST_JAVA")?)
        .args(["-cp", &format!("{}/*", variable("TEST_KAFKA_LIBS")?)])
        .arg("org.apache.kafka.tools.ProducerPerformance")
        .args(["--topic", &topic.name, "--num-records", &records.to_string()])
        .args(["--record-size", &record_bytes.to_string(), "--throughput", "-1"])
        .args(["--producer-props", &format!("bootstrap.servers={}", variable("TEST_KAFKA")?)])
        .arg("acks=all")
        .output()
        .await
        .context("run ProducerPerformance")?;
    let told = String::from_utf8_lossy(&output.stdout);
    // "500000 records sent, 301204.819277 records/sec (46.21 MB/sec), …", of which the last counts.
    let last = told.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once(" records sent, ")?;
        rest.split_whitespace().next()?.parse().ok()
    });
    last.with_context(|| {
        format!("ProducerPerformance: {told}{}", String::from_utf8_lossy(&output.stderr))
    })
}

/// Reads "number of transactions actually processed: 19200/19200", or the same without a target.
fn done(told: &str) -> Option<usize> {
    let rest = told.split_once("transactions actually processed: ")?.1;
    rest.split(|next: char| !next.is_ascii_digit()).next()?.parse().ok()
}
