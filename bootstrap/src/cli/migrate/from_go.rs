//! `messager migrate from-go`: takes over the messages of the Go service (docs/moving-from-go.md).

mod report;

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use adapters_persistence::{Database, SqlGoTable, check_schema};
use anyhow::{Context, ensure};
use application::{
    GiveBack, TakeOver, TakeOverClaimed,
    ports::{GoCounts, GoTable, Ids},
};
use rand::rngs::StdRng;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::report::{Left, Report};
use crate::{
    cli::{Output, existing_database},
    config::{CodesConfig, Config},
    random::seeded,
    roles,
};

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub struct Args {
    /// Count the rows, and change nothing.
    #[arg(long, conflicts_with_all = ["follow", "stopped", "back"])]
    dry_run: bool,
    /// Go on until Ctrl-C, for as long as the Go service accepts messages.
    #[arg(long, conflicts_with_all = ["stopped", "back"])]
    follow: bool,
    /// The Go service is stopped: also take the rows that its processor had claimed, unless their
    /// messages are in its topic.
    #[arg(long, conflicts_with = "back")]
    stopped: bool,
    /// The way back: give the messages back that no `processor` of Messager has published. No `processor` may run.
    #[arg(long)]
    back: bool,
    /// The topic of the Go service. Only `--stopped` reads it.
    #[arg(long, default_value = "message")]
    topic: String,
    /// The time zone of the times in the table, such as Europe/Berlin. By default, that of the
    /// database.
    #[arg(long)]
    time_zone: Option<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// How many ids one count looks through.
const PART: i64 = 50_000;

/// How many ids one look at whole rows looks through.
const BATCH: i64 = 5_000;

/// The pause of `--follow` when it has taken over all rows.
const PAUSE: Duration = Duration::from_millis(200);

/// The pause of `--follow` after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);

/// How often progress is reported.
const PROGRESS: Duration = Duration::from_secs(1);

/// `--follow` looks again at this many ids before the last that it saw: a row may be committed after
/// a row with a higher id.
const LOOK_BACK: i64 = 10_000;

/// Carries out `messager migrate from-go`.
pub(super) async fn execute(config: &Config, args: &Args) -> anyhow::Result<()> {
    let database = existing_database(config, "messager migrate from-go")?;
    let result = async {
        check_schema(&database).await?;
        carry_out(config, &database, args).await
    }
    .await;
    database.close().await?;
    result.with_context(|| config.database.to_string())
}

/// Fails if Messager uses the topic of the Go service: each of the two would send what is the other's.
fn check_topics(config: &Config, of_go: &str) -> anyhow::Result<()> {
    for (setting, broker) in
        [("PROCESSOR_TOPIC", &config.relay.broker), ("CONSUMER_TOPIC", &config.consumer.broker)]
    {
        ensure!(
            !broker.is_kafka() || broker.topic != of_go,
            "{setting} is {of_go}, the topic of the Go service (--topic): each service would also \
             send the messages of the other; give Messager a topic of its own"
        );
    }
    Ok(())
}

async fn carry_out(config: &Config, database: &Database, args: &Args) -> anyhow::Result<()> {
    if !args.dry_run && !args.back {
        check_topics(config, &args.topic)?;
    }
    let ttl = config.codes.ttl;
    let table = SqlGoTable::open(database.clone(), args.time_zone.clone(), ttl).await?;
    let counts = count(&table).await?;
    ensure!(
        counts.ahead == 0,
        "{} rows were created in the future if their times are in {}: name their time zone with \
         --time-zone",
        counts.ahead,
        table.zone()
    );
    let mut report = Report::new(table.zone(), ttl);
    if args.back {
        let all = table.ids().await?.unwrap_or(NONE);
        report.given_back = Some(GiveBack::new(table.clone()).execute(all).await?);
    } else if !args.dry_run {
        let vault = roles::unlock(config, database).await?;
        let stop = stopping()?;
        let mover = Mover {
            table: table.clone(),
            stop,
            take: TakeOver::new(table.clone(), vault.clone(), seeded()?),
        };
        if args.follow {
            mover.follow(&mut report).await?;
        } else {
            let all = table.ids().await?.unwrap_or(NONE);
            mover.pass(all, &mut report).await?;
        }
        if args.stopped {
            ensure!(
                config.consumer.broker.is_kafka(),
                "CONSUMER_URL is not set, so nobody can say which rows the Go service has published"
            );
            // The Go service seals nothing.
            let codes = CodesConfig { require_sealed: false, ..config.codes.clone() };
            let clear = Config { codes, ..config.clone() };
            let stream = roles::stream(&clear, database, &args.topic, &vault);
            let claimed = TakeOverClaimed::new(table.clone(), stream, vault, seeded()?);
            let all = table.ids().await?.unwrap_or(NONE);
            let before = claimed.claimed(all).await?;
            if !before.is_empty() {
                // A Go processor that still runs claims rows in this time.
                sleep(config.relay.reservation + PROGRESS).await;
            }
            // Boxed: the type of a read from Kafka is too deep for the compiler.
            let done = Box::pin(claimed.execute(all, &before)).await;
            report.add(done.with_context(|| format!("topic {}", args.topic))?);
        }
    }
    report.end(left(&table).await?);
    let text = if args.json { report.json() } else { report.lines() };
    write!(Output, "{text}")?;
    Ok(())
}

/// The ids of a table without rows.
const NONE: Ids = Ids { after: 0, last: 0 };

async fn count(table: &SqlGoTable) -> anyhow::Result<GoCounts> {
    let mut counts = GoCounts::default();
    for part in table.ids().await?.unwrap_or(NONE).parts(PART) {
        counts = counts.and(table.count(part).await?);
    }
    Ok(counts)
}

async fn left(table: &SqlGoTable) -> anyhow::Result<Left> {
    let mut left = Left { counts: count(table).await?, ..Left::default() };
    for claimed in [false, true] {
        for part in table.ids().await?.unwrap_or(NONE).parts(BATCH) {
            for row in table.waiting(part, claimed, usize::MAX).await? {
                if let Err(reason) = row.content
                    && left.unusable.insert(row.id, reason).is_none()
                {
                    left.unusable_claimed += u64::from(claimed);
                }
            }
        }
    }
    Ok(left)
}

/// Moves rows that the Go processor has never claimed.
struct Mover {
    table: SqlGoTable,
    stop: CancellationToken,
    take: TakeOver<SqlGoTable, StdRng>,
}

impl Mover {
    /// Takes over all rows of `ids`, batch by batch, or fewer if it is to stop.
    async fn pass(&self, mut ids: Ids, report: &mut Report) -> anyhow::Result<()> {
        let mut said = Instant::now();
        while ids.after < ids.last && !self.stop.is_cancelled() {
            let done = self.take.execute(ids).await?;
            report.add(done);
            if said.elapsed() >= PROGRESS {
                writeln!(io::stderr(), "{} taken over", report.taken)?;
                said = Instant::now();
            }
            match done.next {
                Some(next) => ids.after = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Takes rows over as they come, until it is to stop. An error is reported, and the work goes on.
    async fn follow(&self, report: &mut Report) -> anyhow::Result<()> {
        writeln!(io::stderr(), "taking over; Ctrl-C ends it")?;
        let (mut seen, mut said) = (i64::MIN, (Instant::now(), 0));
        while !self.stop.is_cancelled() {
            let before = report.taken;
            let pause = match self.round(seen, report).await {
                Ok(last) => {
                    seen = last;
                    if report.taken == before { PAUSE } else { Duration::ZERO }
                }
                Err(error) => {
                    writeln!(io::stderr(), "{error:#}; trying again")?;
                    PAUSE_AFTER_ERROR
                }
            };
            if said.0.elapsed() >= PROGRESS && said.1 != report.taken {
                writeln!(io::stderr(), "{} taken over", report.taken)?;
                said = (Instant::now(), report.taken);
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Takes over the rows that were added since the last id that was seen. Returns the last id.
    async fn round(&self, seen: i64, report: &mut Report) -> anyhow::Result<i64> {
        let Some(all) = self.table.ids().await? else { return Ok(seen) };
        let after = all.after.max(seen.saturating_sub(LOOK_BACK));
        self.pass(Ids { after, last: all.last }, report).await?;
        Ok(if self.stop.is_cancelled() { seen } else { all.last })
    }
}

/// Returns a token that Ctrl-C or SIGTERM cancels. The batch in progress ends first.
fn stopping() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let cancel = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &[(&str, &str)]) -> Config {
        let value = |name: &str| {
            settings.iter().find(|(known, _)| *known == name).map(|(_, it)| (*it).to_owned())
        };
        Config::from_lookup(&value).unwrap()
    }

    #[test]
    fn topic_of_the_go_service_is_refused_as_messagers_own() {
        let kafka = [("PRODUCER_URL", "127.0.0.1:9092"), ("CONSUMER_URL", "127.0.0.1:9092")];
        let with = |topics: [(&'static str, &'static str); 2]| config(&[kafka, topics].concat());
        let own = [("PROCESSOR_TOPIC", "messager"), ("CONSUMER_TOPIC", "messager")];
        let half = [("PROCESSOR_TOPIC", "messager"), ("CONSUMER_TOPIC", "message")];

        assert!(check_topics(&with(own), "message").is_ok());
        let refused = check_topics(&config(&kafka), "message").unwrap_err().to_string();
        assert!(refused.starts_with("PROCESSOR_TOPIC is message, "), "{refused}");
        let refused = check_topics(&with(half), "message").unwrap_err().to_string();
        assert!(refused.starts_with("CONSUMER_TOPIC is message, "), "{refused}");
        assert!(check_topics(&config(&[]), "message").is_ok(), "the embedded queue has no topic");
    }
}
