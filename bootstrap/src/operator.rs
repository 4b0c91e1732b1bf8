//! The data and the actions of the operator's page. They are those of the commands of `messager`.
//!
//! The page has one connection, and runs one read or one action at a time. Each read has its own
//! task, and so continues if the client disconnects. `adapters_http` does the same for an action.

mod tables;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use adapters_http::{Action, Details, Found, Operator, OperatorError, Status, Table};
use adapters_persistence::{Database, Overview, SqlDeadLetters, SqlStories, overview};
use anyhow::Context;
use application::ports::DeadLetters;
use tokio::{
    sync::{Mutex, OwnedMutexGuard, watch},
    time::{Instant, sleep, timeout},
};

use self::tables::{gateway_tables, letter_details, letter_table, status_tables, story};
use crate::{
    cli::{
        dead_letters, gateways,
        message::{self, Id, More, Retention},
        phone::phone,
        rfc3339, status,
    },
    config::{Config, GatewaysConfig},
};

/// How long a request waits for its turn, and then for its data.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the data of a view is reused.
const KEPT: Duration = Duration::from_secs(1);

/// The maximum age of a look from which rates are computed.
const RECENT: Duration = Duration::from_secs(60);

/// The maximum numbers of dead letters, of stories for a phone, and of rows of each table that
/// a search for a phone reads.
const MOST_LETTERS: u64 = 100;
const MOST_STORIES: usize = 20;
const MOST_ROWS: u64 = 100_000;

type Answer<T> = Result<T, OperatorError>;

/// Reads the data of the page, and carries out its actions.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    source: Arc<Source>,
    /// Only the holder of this lock may use the database.
    views: Arc<Mutex<Views>>,
}

#[derive(Debug)]
struct Source {
    config: Config,
    /// Those in force: the file of gateways may have changed since the start.
    gateways: watch::Receiver<Arc<GatewaysConfig>>,
    database: Database,
    /// The last look at the status.
    before: std::sync::Mutex<Option<(Instant, Overview)>>,
}

/// The latest data of each view.
#[derive(Debug, Default)]
struct Views {
    status: Kept<Status>,
    gateways: Kept<Vec<Table>>,
    dead_letters: Kept<Table>,
}

#[derive(Debug)]
struct Kept<T>(Option<(Instant, Answer<T>)>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> Kept<T> {
    fn fresh(&self) -> Option<Answer<T>> {
        let (read, answer) = self.0.as_ref()?;
        (read.elapsed() < KEPT).then(|| answer.clone())
    }
}

impl Desk {
    pub(crate) fn new(
        config: Config,
        gateways: watch::Receiver<Arc<GatewaysConfig>>,
        database: Database,
    ) -> Self {
        let before = std::sync::Mutex::default();
        let source = Arc::new(Source { config, gateways, database, before });
        Self { source, views: Arc::default() }
    }

    /// Waits until no other read or action runs.
    async fn lock(&self) -> Answer<OwnedMutexGuard<Views>> {
        let views = Arc::clone(&self.views).lock_owned();
        timeout(PATIENCE, views).await.map_err(|_| busy())
    }

    /// Reads a view, unless it was read a moment ago.
    async fn view<T, F>(
        &self,
        slot: fn(&mut Views) -> &mut Kept<T>,
        read: impl FnOnce(Arc<Source>) -> F,
    ) -> Answer<T>
    where
        T: Clone + Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let mut views = self.lock().await?;
        if let Some(answer) = slot(&mut views).fresh() {
            return answer;
        }
        let read = read(Arc::clone(&self.source));
        in_time(async move {
            let answer = read.await.map_err(unavailable);
            slot(&mut views).0 = Some((Instant::now(), answer.clone()));
            answer
        })
        .await
    }

    /// Reads data that is not reused.
    async fn look<T, F>(&self, read: impl FnOnce(Arc<Source>) -> F) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let views = self.lock().await?;
        let read = read(Arc::clone(&self.source));
        in_time(async move {
            let answer = read.await.map_err(unavailable);
            drop(views);
            answer
        })
        .await
    }
}

/// Waits for a read, which has its own task and so goes on if the client disconnects.
async fn in_time<T: Send + 'static>(
    read: impl Future<Output = Answer<T>> + Send + 'static,
) -> Answer<T> {
    match timeout(PATIENCE, tokio::spawn(read)).await {
        Ok(done) => done.unwrap_or_else(|panic| Err(unavailable(panic))),
        Err(_) => Err(too_late()),
    }
}

impl Operator for Desk {
    async fn status(&self) -> Answer<Status> {
        self.view(|views| &mut views.status, async |source| source.status().await).await
    }

    async fn gateways(&self) -> Answer<Vec<Table>> {
        let read =
            async |source: Arc<Source>| source.gateways().await.map(|it| gateway_tables(&it));
        self.view(|views| &mut views.gateways, read).await
    }

    async fn message(&self, id: &str) -> Answer<Found> {
        let id: Id =
            id.parse().map_err(|rule| OperatorError::Invalid(format!("an id is {rule}")))?;
        let found = self.look(async move |source: Arc<Source>| {
            Ok(message::find(&SqlStories::new(source.database.clone()), id).await?)
        });
        let Some(found) = found.await? else {
            let retention = Retention::of(&self.source.config);
            return Err(OperatorError::Unknown(message::unknown(id, retention)));
        };
        Ok(Found { stories: vec![story(&found)], note: None })
    }

    async fn messages_to(&self, text: &str) -> Answer<Found> {
        // As people write it.
        let digits = text.replace([' ', '-', '(', ')', '.', '\u{a0}'], "");
        let typed = phone(&digits).map_err(|rule| {
            OperatorError::Invalid(format!(
                "neither an id nor a phone number: an id is a UUID, with or without ver_ in front, \
                 and a number has {rule}"
            ))
        })?;
        let numbers = typed.numbers(self.source.config.numbers.default_region);
        let read = self.look(async move |source: Arc<Source>| {
            let retention = Retention::of(&source.config);
            let stories = SqlStories::new(source.database.clone());
            let (mut told, mut notes) = (Vec::new(), Vec::new());
            for phone in numbers {
                let found = stories.of_phone(&phone, MOST_STORIES, MOST_ROWS, &|_| ()).await?;
                notes.push(More::PAGE.note(&phone, &found, retention));
                told.extend(found.stories.iter().map(story));
            }
            Ok((told, notes.join("; ")))
        });
        let (stories, note) = read.await?;
        if stories.is_empty() {
            return Err(OperatorError::Unknown(note));
        }
        Ok(Found { stories, note: Some(note) })
    }

    async fn dead_letters(&self) -> Answer<Table> {
        let read = async |source: Arc<Source>| {
            let letters = SqlDeadLetters::new(source.database.clone());
            Ok(letter_table(letters.list(MOST_LETTERS).await?, MOST_LETTERS))
        };
        self.view(|views| &mut views.dead_letters, read).await
    }

    async fn before(&self, action: &Action) -> Answer<Details> {
        let (Action::Retry(id) | Action::Discard(id)) = *action else { return Ok(Vec::new()) };
        let read = self.look(async move |source: Arc<Source>| {
            Ok(SqlDeadLetters::new(source.database.clone()).find(id).await?)
        });
        let letter = read.await?;
        let letter = letter.ok_or_else(|| {
            OperatorError::Unknown(format!("dead letter {id} does not exist, or no longer exists"))
        })?;
        Ok(letter_details(letter))
    }

    async fn act(&self, action: Action) -> Answer<String> {
        let mut views = self.lock().await?;
        let done = self.source.act(action).await;
        // The next view must show the result.
        *views = Views::default();
        done.map_err(|error| OperatorError::Refused(format!("{error:#}")))
    }
}

impl Source {
    async fn status(&self) -> anyhow::Result<Status> {
        let place = || self.config.database.to_string();
        let before = self.before().take().filter(|(at, _)| at.elapsed() < RECENT);
        let (at, before) = if let Some(before) = before {
            before
        } else {
            let first = (Instant::now(), overview(&self.database).await.with_context(place)?);
            sleep(status::BETWEEN).await;
            first
        };
        let gateways = self.in_force();
        let shown = status::look(&self.config, &gateways, &self.database, &before, at.elapsed());
        let shown = shown.await.with_context(place)?;
        let status = Status { time: rfc3339(shown.overview.now), tables: status_tables(&shown) };
        *self.before() = Some((Instant::now(), shown.overview));
        Ok(status)
    }

    async fn gateways(&self) -> anyhow::Result<gateways::Gateways> {
        let region = self.config.numbers.default_region;
        gateways::Gateways::read(&self.in_force(), region, &self.database).await
    }

    async fn act(&self, action: Action) -> anyhow::Result<String> {
        let letters = SqlDeadLetters::new(self.database.clone());
        let letter = |id: i64, done: &str| format!("dead letter {id}: {done}");
        match action {
            Action::Retry(id) => {
                let done = dead_letters::retry(&self.config, &self.database, &letters, id);
                Ok(letter(id, Box::pin(done).await?))
            }
            Action::Discard(id) => Ok(letter(id, dead_letters::discard(&letters, id).await?)),
            Action::Drain(name) => gateways::drain(&self.in_force(), &self.database, &name).await,
            Action::Undrain(name) => {
                gateways::undrain(&self.in_force(), &self.database, &name).await
            }
        }
    }

    fn in_force(&self) -> Arc<GatewaysConfig> {
        Arc::clone(&self.gateways.borrow())
    }

    fn before(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Overview)>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(error: impl Into<anyhow::Error>) -> OperatorError {
    OperatorError::Unavailable(format!("{:#}", error.into()))
}

fn busy() -> OperatorError {
    OperatorError::Busy(format!(
        "another read or action of this page has been running for {} s; nothing was read or \
         changed: try again",
        PATIENCE.as_secs()
    ))
}

fn too_late() -> OperatorError {
    OperatorError::Unavailable(format!(
        "the database did not answer within {} s",
        PATIENCE.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> Desk {
        let config = Config::from_lookup(&|_| None).unwrap();
        let (_, gateways) = watch::channel(Arc::new(config.gateways.clone()));
        let database = Database::connect_lazily(&config.database, "test", 1);
        Desk::new(config, gateways, database)
    }

    #[tokio::test(start_paused = true)]
    async fn request_that_waits_for_another_one_does_not_blame_the_database() {
        let desk = desk();
        let _other = desk.views.lock().await;

        let busy = busy();
        assert_eq!(desk.status().await.unwrap_err(), busy);
        assert_eq!(desk.messages_to("79991234567").await.unwrap_err(), busy);
        assert_eq!(desk.act(Action::Discard(1)).await.unwrap_err(), busy);
    }

    #[tokio::test(start_paused = true)]
    async fn wait_for_another_request_does_not_shorten_the_time_of_a_read() {
        let desk = desk();
        let other = Arc::clone(&desk.views).lock_owned().await;
        tokio::spawn(async move {
            sleep(PATIENCE * 2 / 3).await;
            drop(other);
        });

        let read = desk.look(async |_| {
            sleep(PATIENCE * 2 / 3).await;
            Ok(())
        });
        assert_eq!(read.await, Ok(()));

        let endless = desk.look(async |_| std::future::pending::<anyhow::Result<()>>().await);
        assert_eq!(endless.await, Err(too_late()));
    }
}
