//! `messager dead-letters`: what an operator does about records that are no message.

use std::io::Write;

use adapters_persistence::{Database, SqlDeadLetters};
use anyhow::{Context, bail};
use application::{
    Retried, RetryDeadLetter,
    ports::{DeadLetter, DeadLetters, Revived},
};

use crate::{
    cli::{Output, existing_database, rfc3339},
    config::Config,
    roles,
};

#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// List them, the oldest first.
    List {
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Show where a record stands, and why it is no message. Not what it holds.
    Show { id: i64 },
    /// Read records again, and send their messages if they are some by now and have not expired.
    Retry {
        #[arg(required = true)]
        ids: Vec<i64>,
    },
    /// Forget records.
    Discard {
        #[arg(required = true)]
        ids: Vec<i64>,
    },
}

/// Carries out `messager dead-letters …`. Fails if one of several could not be dealt with.
pub async fn execute(config: &Config, command: Command) -> anyhow::Result<()> {
    let database = existing_database(config, "messager dead-letters")?;
    let letters = SqlDeadLetters::new(database.clone());
    let result = match command {
        Command::List { limit } => list(&letters, limit).await,
        Command::Show { id } => show(&letters, id).await,
        Command::Retry { ids } => {
            each(&ids, async |id| retry(config, &database, &letters, id).await).await
        }
        Command::Discard { ids } => each(&ids, async |id| discard(&letters, id).await).await,
    };
    database.close().await?;
    result.with_context(|| config.database.to_string())
}

async fn list(letters: &SqlDeadLetters, limit: u64) -> anyhow::Result<()> {
    writeln!(Output, "id\tgroup\ttopic\tpartition\toffset\trecorded\treason")?;
    for DeadLetter { id, group, topic, partition, offset, reason, recorded_at } in
        letters.list(limit).await?
    {
        let recorded = rfc3339(recorded_at);
        writeln!(Output, "{id}\t{group}\t{topic}\t{partition}\t{offset}\t{recorded}\t{reason}")?;
    }
    Ok(())
}

async fn show(letters: &SqlDeadLetters, id: i64) -> anyhow::Result<()> {
    let DeadLetter { id, group, topic, partition, offset, reason, recorded_at } =
        find(letters, id).await?;
    let recorded = rfc3339(recorded_at);
    writeln!(
        Output,
        "id         {id}\ngroup      {group}\ntopic      {topic}\npartition  {partition}\n\
         offset     {offset}\nrecorded   {recorded}\nreason     {reason}"
    )?;
    Ok(())
}

async fn retry(
    config: &Config,
    database: &Database,
    letters: &SqlDeadLetters,
    id: i64,
) -> anyhow::Result<&'static str> {
    let letter = find(letters, id).await?;
    let vault = roles::unlock(config, database).await?;
    let stream = roles::stream(config, database, &letter.topic, &vault);
    let retry = RetryDeadLetter::new(letters.clone(), stream, config.codes.ttl);
    // Boxed: with all that a read of Kafka holds, its type is too deep for the compiler.
    match Box::pin(retry.execute(&letter)).await? {
        Retried::Revived(Revived::Pending) => Ok("will be sent"),
        Retried::Revived(Revived::KnownAlready) => Ok("was taken over already"),
        Retried::Revived(Revived::Expired) => bail!("the message has expired, and is not sent"),
        Retried::Unreadable(reason) => bail!("still no message: {reason}"),
        Retried::Gone => bail!("the record is not in the topic any more"),
    }
}

async fn discard(letters: &SqlDeadLetters, id: i64) -> anyhow::Result<&'static str> {
    if letters.discard(id).await? { Ok("discarded") } else { bail!("there is no such dead letter") }
}

async fn find(letters: &SqlDeadLetters, id: i64) -> anyhow::Result<DeadLetter> {
    letters.find(id).await?.context("there is no such dead letter")
}

/// Does all, and says of each what became of it.
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
