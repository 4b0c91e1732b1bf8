//! `messager dead-letters`: records that the consumer could not read.

use std::io::Write;

use adapters_persistence::{Database, SqlDeadLetters};
use anyhow::{Context, bail};
use application::{
    Retried, RetryDeadLetter,
    ports::{DeadLetter, DeadLetters, Revived},
};
use serde_json::Value;

use super::{
    Output, existing_database, rfc3339,
    table::{Fields, Form, Table},
};
use crate::{config::Config, roles};

#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// List dead letters, the oldest first.
    List {
        /// The most to list.
        #[arg(long, default_value_t = 100)]
        limit: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the place of a record, and why it could not be read. Its content is not shown.
    Show {
        id: i64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read records again, and send their messages if they can be read now and have not expired.
    Retry {
        #[arg(required = true)]
        ids: Vec<i64>,
    },
    /// Delete dead letters. Their records stay in the topic.
    Discard {
        #[arg(required = true)]
        ids: Vec<i64>,
    },
}

/// Carries out `messager dead-letters …`. Fails if any of several dead letters stays.
pub async fn execute(config: &Config, command: Command) -> anyhow::Result<()> {
    let database = existing_database(config, "messager dead-letters")?;
    let letters = SqlDeadLetters::new(database.clone());
    let result = match command {
        Command::List { limit, json } => list(&letters, limit, Form::of(json)).await,
        Command::Show { id, json } => show(&letters, id, Form::of(json)).await,
        Command::Retry { ids } => {
            each(&ids, async |id| retry(config, &database, &letters, id).await).await
        }
        Command::Discard { ids } => each(&ids, async |id| discard(&letters, id).await).await,
    };
    database.close().await?;
    result.with_context(|| config.database.to_string())
}

pub(crate) const NAMES: [&str; 7] =
    ["id", "group", "topic", "partition", "offset", "recorded", "reason"];

async fn list(letters: &SqlDeadLetters, limit: u64, form: Form) -> anyhow::Result<()> {
    let mut table = Table::new(NAMES);
    for letter in letters.list(limit).await? {
        table.row(values(letter));
    }
    Ok(write!(Output, "{}", table.text(form))?)
}

async fn show(letters: &SqlDeadLetters, id: i64, form: Form) -> anyhow::Result<()> {
    let mut fields = Fields::default();
    for (name, value) in NAMES.into_iter().zip(values(find(letters, id).await?)) {
        fields.add(name, value);
    }
    Ok(write!(Output, "{}", fields.text(form))?)
}

/// Returns the properties of a dead letter, as [`NAMES`] names them.
pub(crate) fn values(letter: DeadLetter) -> [Value; 7] {
    let DeadLetter { id, group, topic, partition, offset, reason, recorded_at } = letter;
    [
        id.into(),
        group.into(),
        topic.into(),
        partition.into(),
        offset.into(),
        rfc3339(recorded_at).into(),
        reason.into(),
    ]
}

/// Reads the record of a dead letter again. Returns the result.
pub(crate) async fn retry(
    config: &Config,
    database: &Database,
    letters: &SqlDeadLetters,
    id: i64,
) -> anyhow::Result<&'static str> {
    let letter = find(letters, id).await?;
    let vault = roles::unlock(config, database).await?;
    let stream = roles::stream(config, database, &letter.topic, &vault);
    let retry = RetryDeadLetter::new(letters.clone(), stream, config.codes.ttl);
    // Boxed: the type of a read from Kafka is too deep for the compiler.
    match Box::pin(retry.execute(&letter)).await? {
        Retried::Revived(Revived::Pending) => Ok("will be sent"),
        Retried::Revived(Revived::KnownAlready) => Ok("was already taken over"),
        Retried::Revived(Revived::Expired) => {
            bail!("the message has expired or was canceled, and is not sent")
        }
        Retried::Unreadable(reason) => bail!("the record still cannot be read: {reason}"),
        Retried::Gone => bail!("the topic no longer has the record"),
    }
}

/// Deletes a dead letter. Returns the result.
pub(crate) async fn discard(letters: &SqlDeadLetters, id: i64) -> anyhow::Result<&'static str> {
    if letters.discard(id).await? { Ok("discarded") } else { bail!("there is no such dead letter") }
}

async fn find(letters: &SqlDeadLetters, id: i64) -> anyhow::Result<DeadLetter> {
    letters.find(id).await?.context("there is no such dead letter")
}

/// Carries out `act` for each dead letter, and prints its result.
async fn each(
    ids: &[i64],
    act: impl AsyncFn(i64) -> anyhow::Result<&'static str>,
) -> anyhow::Result<()> {
    let mut failed = 0;
    for id in ids {
        match act(*id).await {
            Ok(done) => writeln!(Output, "{id}: {done}")?,
            Err(error) => {
                failed += 1;
                writeln!(Output, "{id}: {error:#}")?;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} dead letters stay", ids.len());
    }
    Ok(())
}
