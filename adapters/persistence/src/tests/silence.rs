use std::{sync::Arc, time::Duration};

use adapters_wire::conformance::{TTL, messages, vault};
use application::ports::{BrokerError, MessageBroker, Outbox, StoreError};
use migration::{Migrator, MigratorTrait};
use sea_orm::ConnectionTrait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::yield_now,
    time::{Instant, sleep_until, timeout},
};

use super::support::{in_time, new_message, new_postgres, phone, statement};
use crate::{
    CoalescingOutbox, Database, DatabaseSettings, EmbeddedQueue, EmbeddedQueueSettings,
    OutboxSettings, PostgresSettings, database::distrust_servers,
};

/// A proxy that can make all its connections silent: they stay open and forward nothing. Later
/// connections are not affected.
struct Line {
    port: u16,
    silence: Arc<watch::Sender<u32>>,
}

impl Line {
    async fn to(host: String, port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let silence = Arc::new(watch::Sender::new(0));
        let silenced = Arc::clone(&silence);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect((&*host, port)).await.unwrap();
                let mut silenced = silenced.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => return,
                        _ = silenced.changed() => {}
                    }
                    // Both stay open.
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { port: own, silence }
    }

    fn fall_silent(&self) {
        self.silence.send_modify(|times| *times += 1);
    }
}

#[tokio::test]
async fn silent_connections_are_replaced() {
    let Some(mut settings) = new_postgres().await else { return };
    let line = Line::to(settings.host.clone(), settings.port).await;
    (settings.host, settings.port) = ("127.0.0.1".to_owned(), line.port);
    // The only connection must not stay in use.
    let database = Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 1);
    Migrator::up(&database.connection(), None).await.unwrap();
    let patience = Duration::from_secs(1);
    let settings = OutboxSettings { writers: 1, patience, ..OutboxSettings::default() };
    let (outbox, _writers) = CoalescingOutbox::start(&database, settings);
    outbox.enqueue(new_message(&phone(1))).await.unwrap();

    line.fall_silent();
    let unheard = outbox.enqueue(new_message(&phone(2))).await;
    assert!(matches!(unheard, Err(StoreError::Unavailable(_))), "{unheard:?}");

    outbox.enqueue(new_message(&phone(3))).await.unwrap();
}

#[tokio::test]
async fn refused_connection_is_reported_as_refused() {
    let Some(settings) = new_postgres().await else { return };
    // A port without a listener.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let settings = DatabaseSettings::Postgres(PostgresSettings { port, ..settings });
    let database = Database::connect_lazily(&settings, "test", 1);

    let error = database.ping().await.unwrap_err().to_string();

    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn only_repeatable_steps_are_answered_before_they_are_durable() {
    let Some(settings) = new_postgres().await else { return };
    let settings = DatabaseSettings::Postgres(settings);
    for (database, expected) in [
        (Database::connect_lazily(&settings, "test", 1), "on"),
        (Database::connect_lazily_to_repeat(&settings, "test", 1), "off"),
    ] {
        let statement =
            statement(&database, "SELECT current_setting('synchronous_commit') AS it", vec![]);
        let row = database.connection().query_one_raw(statement).await.unwrap().unwrap();
        assert_eq!(row.try_get::<String>("", "it").unwrap(), expected);
    }
}

#[tokio::test]
async fn queue_on_a_silent_connection_fails_within_the_limit_and_reconnects() {
    let Some(mut settings) = new_postgres().await else { return };
    let line = Line::to(settings.host.clone(), settings.port).await;
    (settings.host, settings.port) = ("127.0.0.1".to_owned(), line.port);
    let database = Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 1);
    Migrator::up(&database.connection(), None).await.unwrap();
    let topic = "message".to_owned();
    let settings = EmbeddedQueueSettings { topic, default_ttl: TTL, require_sealed: false };
    let queue = EmbeddedQueue::new(database.clone(), settings, vault());
    queue.publish(&messages(1, 0..1)).await.into_iter().for_each(Result::unwrap);
    // The pool tests a returned connection. That test must not hang.
    let connection = database.connection();
    let pool = connection.get_postgres_connection_pool();
    in_time(async {
        while pool.num_idle() == 0 {
            yield_now().await;
        }
    })
    .await;

    line.fall_silent();
    let limit = Duration::from_secs(20);
    let unheard = timeout(limit, queue.publish(&messages(1, 0..1))).await.unwrap();
    assert!(matches!(unheard[..], [Err(BrokerError::Unavailable(_))]), "{unheard:?}");

    queue.publish(&messages(1, 0..1)).await.into_iter().for_each(Result::unwrap);
}

/// Returns the port of a proxy that delays each byte by `delay`.
async fn far_away(host: String, port: u16, delay: Duration) -> u16 {
    async fn carry(
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        delay: Duration,
    ) {
        let (arriving, mut arrived) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let reads = async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                let _ = arriving.send((Instant::now() + delay, buffer[..length].to_vec()));
            }
        };
        let writes = async move {
            while let Some((due, bytes)) = arrived.recv().await {
                sleep_until(due).await;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(reads, writes);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect((&*host, port)).await.unwrap();
            far.set_nodelay(true).unwrap();
            near.set_nodelay(true).unwrap();
            let (from_near, to_near) = near.into_split();
            let (from_far, to_far) = far.into_split();
            tokio::spawn(carry(from_near, to_far, delay));
            tokio::spawn(carry(from_far, to_near, delay));
        }
    });
    own
}

#[tokio::test]
async fn server_with_long_round_trips_can_be_used() {
    let Some(mut settings) = new_postgres().await else { return };
    let port = far_away(settings.host.clone(), settings.port, Duration::from_millis(75)).await;
    (settings.host, settings.port) = ("127.0.0.1".to_owned(), port);
    let database = Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 2);

    database.admit().await.unwrap();
    database.ping().await.unwrap();

    // A pool must also get new sessions after the comparison of this server has expired.
    for _ in 0..2 {
        distrust_servers();
        let one = database.connection().get_postgres_connection_pool().acquire().await.unwrap();
        database.ping().await.unwrap();
        one.close().await.unwrap();
    }
}
