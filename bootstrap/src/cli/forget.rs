//! `messager forget`: erases a number from the database.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use adapters_persistence::{Database, Erased, SqlForgetting, Traces};
use anyhow::bail;
use domain::PhoneNumber;
use tokio::time::sleep;

use super::{
    Output,
    confirm::confirmed,
    phone::{Phone, phone},
    progress::Progress,
    table::{Form, Table},
};
use crate::config::Config;

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// The number. In international form, such as +79991234567, or without the + as /api received it.
    #[arg(long, value_parser = phone)]
    phone: Phone,
    /// Count the rows, and change nothing.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask. Needed if there is no terminal.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A consumer ends an expired message within this time.
const CONSUMER: Duration = Duration::from_secs(5);

/// A call of a gateway ends within this time, even if its consumer died.
const CALL: Duration = Duration::from_secs(100);

/// What the erasure does not reach.
const STAYS: &str = "\
These are not reached:
  the topic in Kafka keeps its records until its retention ends; consumers do not send them
  backups, and the write-ahead log and freed pages of the database, until they are overwritten
  what the provider has of messages that were sent, and what the receiver of events got
  logs, which have masked numbers only";

/// Carries out `messager forget`. Fails if something stays.
pub async fn execute(config: &Config, database: &Database, args: Args) -> anyhow::Result<()> {
    let forgetting = SqlForgetting::new(
        database.clone(),
        config.consumer.group.clone(),
        config.consumer.broker.topic.clone(),
    );
    let form = Form::of(args.json);
    let phones = args.phone.numbers(config.numbers.default_region);
    let mut found = Vec::new();
    for phone in &phones {
        let progress = Progress::of("rows read");
        found.push(forgetting.find(phone, &|rows| progress.at(rows)).await?);
    }
    let tables = together(&found);
    let masked = phones.iter().map(PhoneNumber::masked).collect::<Vec<_>>().join(" and ");
    if args.dry_run {
        write!(Output, "{}", listed(&tables, form))?;
        writeln!(io::stderr(), "{STAYS}")?;
        return Ok(());
    }
    if found.iter().all(Traces::is_empty) {
        writeln!(io::stderr(), "the database has nothing of {masked}")?;
        return Ok(());
    }
    if !args.yes {
        write!(io::stderr(), "{}", listed(&tables, Form::Columns { colours: false }))?;
        writeln!(io::stderr(), "{STAYS}")?;
        if !confirmed(&format!("Type yes to erase {masked} from the database"))? {
            bail!("nothing was changed");
        }
    }
    for (phone, traces) in phones.iter().zip(&found).filter(|(_, traces)| !traces.is_empty()) {
        erase(&forgetting, traces, phone).await?;
    }
    write!(Output, "{}", listed(&tables, form))?;
    writeln!(io::stderr(), "{STAYS}")?;
    Ok(())
}

/// Ends what is underway, waits for calls that are in progress, and erases the number.
async fn erase(
    forgetting: &SqlForgetting,
    traces: &Traces,
    phone: &PhoneNumber,
) -> anyhow::Result<()> {
    forgetting.stop(traces).await?;
    let began = Instant::now();
    let progress = Progress::of("messages have not ended");
    loop {
        let open = forgetting.open(traces).await?;
        if open == 0 {
            break;
        }
        if began.elapsed() > CALL {
            bail!(
                "{open} messages have not ended: calls of a gateway are in progress; no more calls \
                 follow; run the command again to erase them"
            );
        }
        if began.elapsed() > CONSUMER {
            forgetting.end_late(traces).await?;
        }
        progress.at(open);
        sleep(Duration::from_millis(200)).await;
    }
    drop(progress);
    forgetting.erase(traces).await?;
    if forgetting.is_back(phone).await? {
        bail!(
            "a new message to {} was accepted meanwhile; what was there before is erased; run the \
             command again",
            phone.masked()
        );
    }
    Ok(())
}

/// Returns the rows of each table, of all notations of a number.
fn together(found: &[Traces]) -> Vec<Erased> {
    let mut tables = found.first().map_or_else(Vec::new, |traces| traces.tables.clone());
    for other in found.iter().skip(1).flat_map(|traces| &traces.tables) {
        match tables.iter_mut().find(|table| table.table == other.table) {
            Some(table) => table.rows += other.rows,
            None => tables.push(*other),
        }
    }
    tables
}

fn listed(tables: &[Erased], form: Form) -> String {
    let mut table = Table::new(["table", "rows", "how"]);
    for Erased { table: name, rows, how } in tables {
        table.row([(*name).into(), (*rows).into(), (*how).into()]);
    }
    table.text(form)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_phone_is_needed_and_a_dry_run_asks_nothing() {
        let parse = |line: &str| {
            Line::try_parse_from(format!("forget {line}").split_whitespace()).map(|line| line.args)
        };

        assert!(parse("--phone +79991234567 --dry-run").unwrap().dry_run);
        for bad in ["", "--phone x", "--phone +79991234567 --dry-run --yes"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_table_is_listed_with_what_becomes_of_its_rows() {
        let tables = [Erased { table: "phone", rows: 2, how: "deleted" }];

        assert_eq!(listed(&tables, Form::Tabs), "table\trows\thow\nphone\t2\tdeleted\n");
    }
}
