//! `messager status`: the state of the service in one look, as the database shows it.

mod screen;

use std::{
    io::{IsTerminal, Write, stdout},
    time::{Duration, Instant},
};

use adapters_persistence::{BadEnd, COUNTED, Database, Many, Overview, PartitionState, overview};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};

use self::screen::Screen;
use super::{
    Output, gateways, rfc3339,
    table::{Colour, Form, Table, json_text, text},
};
use crate::config::{Config, GatewaysConfig};

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Look once. Without a terminal, this is the default.
    #[arg(long)]
    once: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(1..=3_600))]
    every: u64,
    /// Look once, and print JSON.
    #[arg(long)]
    json: bool,
}

/// The time between the two looks that tell the rates, if there was no look before.
pub(crate) const BETWEEN: Duration = Duration::from_secs(1);

/// What is shown at one moment.
pub(crate) struct Shown {
    pub(crate) overview: Overview,
    rates: Rates,
    gateways: gateways::Gateways,
}

/// Messages a second, since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Rates {
    accepted: f64,
    taken_over: f64,
    /// Messages whose calls ended, well or badly.
    ended: f64,
    /// Records that all groups read.
    read: f64,
}

/// Shows the state until Ctrl-C, or once.
pub async fn execute(config: &Config, database: &Database, args: Args) -> anyhow::Result<()> {
    let form = Form::of(args.json);
    let began = Instant::now();
    let mut before = overview(database).await?;
    if args.once || form == Form::Json || !stdout().is_terminal() {
        sleep(BETWEEN).await;
        let shown = look(config, &config.gateways, database, &before, began.elapsed()).await?;
        let shown = match form {
            Form::Json => json_text(&shown.json()),
            form => shown.text(form),
        };
        return Ok(write!(Output, "{shown}")?);
    }

    let mut interrupted = signal(SignalKind::interrupt())?;
    let screen = Screen::open()?;
    sleep(BETWEEN).await;
    let mut looked = began;
    let mut looks = interval(Duration::from_secs(args.every));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = async {
            looks.tick().await;
            look(config, &config.gateways, database, &before, looked.elapsed()).await
        };
        let shown = tokio::select! {
            shown = next => shown,
            _ = interrupted.recv() => return Ok(()),
        };
        match shown {
            Ok(shown) => {
                looked = Instant::now();
                screen.show(&shown.text(form))?;
                before = shown.overview;
            }
            // The database may come back.
            Err(error) => screen.show(&format!("{error:#}"))?,
        }
    }
}

/// Looks again, with the gateways that are in force. `before` is what the last look saw, and `lasted` is
/// the time since it.
pub(crate) async fn look(
    config: &Config,
    in_force: &GatewaysConfig,
    database: &Database,
    before: &Overview,
    lasted: Duration,
) -> anyhow::Result<Shown> {
    let overview = overview(database).await?;
    let rates = Rates::between(before, &overview, lasted);
    let region = config.numbers.default_region;
    let gateways = gateways::Gateways::read(in_force, region, database).await?;
    Ok(Shown { overview, rates, gateways })
}

impl Rates {
    fn between(before: &Overview, now: &Overview, lasted: Duration) -> Self {
        let seconds = lasted.as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown with one decimal")]
        let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        // What was open and is not any more has ended.
        let ended = |it: &Overview| it.taken_over.saturating_sub(it.open.count);
        let read = |it: &Overview| -> u64 {
            let offsets = it.partitions.iter().filter_map(|partition| partition.next_offset);
            offsets.map(|offset| offset.max(0).unsigned_abs()).sum()
        };
        Self {
            accepted: rate(before.accepted, now.accepted),
            taken_over: rate(before.taken_over, now.taken_over),
            ended: rate(ended(before), ended(now)),
            read: rate(read(before), read(now)),
        }
    }
}

impl Shown {
    fn text(&self, form: Form) -> String {
        let Self { overview, rates, gateways } = self;
        let mut parts = Vec::new();
        if form != Form::Tabs {
            let title = Colour::Bold.paint("messager status", form);
            parts.push(format!("{title}  {}\n", rfc3339(overview.now)));
        }
        parts.push(numbers(overview, *rates).text(form));
        parts.push(partitions(&overview.partitions, form));
        parts.push(gateways.table().text(form));
        if !overview.errors.is_empty() {
            parts.push(errors(&overview.errors).text(form));
        }
        parts.join("\n")
    }

    /// Returns the numbers of waiting messages, and their rates.
    pub(crate) fn numbers(&self) -> Table<4> {
        numbers(&self.overview, self.rates)
    }

    pub(crate) fn partitions(&self) -> Table<8> {
        partition_table(&self.overview.partitions)
    }

    pub(crate) fn gateways(&self) -> &gateways::Gateways {
        &self.gateways
    }

    pub(crate) fn errors(&self) -> Table<5> {
        errors(&self.overview.errors)
    }

    fn json(&self) -> Value {
        let Self { overview, rates, gateways } = self;
        let many = |it: Many| json!({ "count": it.count, "oldest_seconds": it.oldest.as_secs() });
        json!({
            "time": rfc3339(overview.now),
            "per_second": {
                "accepted": tenths(rates.accepted),
                "read": tenths(rates.read),
                "taken_over": tenths(rates.taken_over),
                "ended": tenths(rates.ended),
            },
            "waiting": many(overview.waiting),
            "in_transit": many(overview.in_transit),
            "open": many(overview.open),
            "calling": overview.calling,
            "consumers": overview.consumers,
            "dead_letters": {
                "count": overview.dead_letters,
                "newest_seconds": overview.newest_dead_letter.as_secs(),
            },
            "events": many(overview.events),
            "failed_events": overview.failed_events,
            "partitions": partition_table(&overview.partitions).json(),
            "gateways": gateways.json(),
            "errors": errors(&overview.errors).json(),
        })
    }
}

fn numbers(overview: &Overview, rates: Rates) -> Table<4> {
    let mut table = Table::new(["what", "count", "per second", "remark"]);
    let oldest = |it: Many| match it.count {
        0 => Value::Null,
        _ => format!("the oldest for {}", lasting(it.oldest)).into(),
    };
    let rate = |it: f64| json!(tenths(it));
    table.row(["accepted".into(), overview.accepted.into(), rate(rates.accepted), Value::Null]);
    table.row(["records read".into(), Value::Null, rate(rates.read), Value::Null]);
    let consumers = match overview.consumers {
        0 => "no consumer is running".into(),
        1 => "by 1 consumer".into(),
        many => format!("by {many} consumers").into(),
    };
    let taken_over = overview.taken_over.into();
    table.row(["taken over".into(), taken_over, rate(rates.taken_over), consumers]);
    table.row(["ended".into(), Value::Null, rate(rates.ended), Value::Null]);
    let waiting = oldest(overview.waiting);
    table.row(["waiting".into(), count(overview.waiting.count), Value::Null, waiting]);
    let transit = oldest(overview.in_transit);
    table.row(["in transit".into(), count(overview.in_transit.count), Value::Null, transit]);
    let open = match oldest(overview.open) {
        Value::String(oldest) => {
            format!("{oldest}, {} are being called for", overview.calling).into()
        }
        none => none,
    };
    table.row(["open".into(), count(overview.open.count), Value::Null, open]);
    let dead = match overview.dead_letters {
        0 => Value::Null,
        _ => format!("the newest {} ago", lasting(overview.newest_dead_letter)).into(),
    };
    table.row(["dead letters".into(), count(overview.dead_letters), Value::Null, dead]);
    let events = match (oldest(overview.events), overview.failed_events) {
        (Value::String(oldest), failed) if failed > 0 => {
            format!("{oldest}, {failed} posts have failed").into()
        }
        (oldest, _) => oldest,
    };
    table.row(["events".into(), count(overview.events.count), Value::Null, events]);
    table
}

/// Returns a count, or that there are at least so many.
fn count(count: u64) -> Value {
    if count >= COUNTED { format!("{COUNTED}+").into() } else { count.into() }
}

fn partition_table(partitions: &[PartitionState]) -> Table<8> {
    let mut table = Table::new([
        "group",
        "topic",
        "partition",
        "owner",
        "lease ms",
        "next offset",
        "lag",
        "read up to ms ago",
    ]);
    let millis = |it: Duration| u64::try_from(it.as_millis()).unwrap_or(u64::MAX);
    for it in partitions {
        table.row([
            it.group.as_str().into(),
            it.topic.as_str().into(),
            it.partition.into(),
            it.owner.as_deref().map_or(Value::Null, Value::from),
            if it.owner.is_some() { millis(it.lease).into() } else { Value::Null },
            it.next_offset.map_or(Value::Null, Value::from),
            it.lag.map_or(Value::Null, Value::from),
            it.behind.map(millis).map_or(Value::Null, Value::from),
        ]);
    }
    table
}

fn partitions(partitions: &[PartitionState], form: Form) -> String {
    if partitions.is_empty() && form != Form::Tabs {
        return "no consumer has registered a partition\n".to_owned();
    }
    partition_table(partitions).text(form)
}

fn errors(errors: &[BadEnd]) -> Table<5> {
    let mut table = Table::new(["last errors", "message", "state", "gateway", "detail"]);
    for it in errors {
        table.row([
            text(rfc3339(it.at)),
            text(it.message),
            it.state.as_str().into(),
            it.gateway.as_deref().map_or(Value::Null, Value::from),
            it.detail.as_str().into(),
        ]);
    }
    table
}

fn tenths(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

fn lasting(it: Duration) -> String {
    match it.as_secs() {
        0..120 => format!("{} s", it.as_secs()),
        120..7_200 => format!("{} min", it.as_secs() / 60),
        _ => format!("{} h", it.as_secs() / 3_600),
    }
}

#[cfg(test)]
mod tests;
