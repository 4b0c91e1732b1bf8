use std::{
    io::{self, ErrorKind, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use adapters_wire::{DecodeSettings, Place, decode, milliseconds};
use application::{
    BoxError, Vault, VaultClosed,
    ports::{Fetched, MessageStream, StartFrom, StreamError},
};
use autometrics::autometrics;
use kafka_protocol::error::ResponseError;
use tokio::{
    io::{AsyncReadExt, BufReader},
    runtime::Handle,
    sync::Semaphore,
    task::spawn_blocking,
    time::timeout,
};

use super::{
    KafkaSettings,
    cluster::{Cluster, Right},
    connection::{Connection, EARLIEST, Fetch, FetchHead, LATEST, OffsetAt},
    records::{self, Found, Raw, Span},
    topic::TopicReport,
    transport::Transport,
};

/// Reads a topic of Apache Kafka, without a consumer group: the caller knows the offsets.
///
/// Reads only committed records, and nothing after an open transaction.
#[derive(Debug)]
pub struct KafkaStream {
    cluster: Cluster,
    records: Arc<RecordReader>,
    /// The longest wait for the next bytes of an answer.
    patience: Duration,
    /// Allows one decompression at a time, because it can take much memory and time.
    decompressing: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
pub struct KafkaStreamSettings {
    pub kafka: KafkaSettings,
    /// The validity of a message whose record states none, counted from the record's timestamp.
    pub default_ttl: Duration,
    /// Whether a message in clear is unreadable.
    pub require_sealed: bool,
}

/// Decodes records.
#[derive(Debug)]
struct RecordReader {
    topic: String,
    default_ttl: Duration,
    require_sealed: bool,
    vault: Vault,
}

/// The number of bytes that a fetch asks for. A broker sends more if one batch is larger.
const FETCH_BYTES: i32 = 1024 * 1024;

/// The largest part of an answer that is held in memory. A larger answer is read as a stream.
const HELD_BYTES: u64 = 4 * 1024 * 1024;

/// How long the broker waits for records when there are none.
const WAIT: Duration = Duration::from_millis(500);

impl KafkaStream {
    /// Makes a stream, which connects when it is first used.
    ///
    /// It reads nothing before `vault` is open, because sealed records would be unreadable.
    pub fn new(settings: KafkaStreamSettings, vault: Vault) -> Self {
        let KafkaStreamSettings { kafka, default_ttl, require_sealed } = settings;
        let records =
            RecordReader { topic: kafka.topic.clone(), default_ttl, require_sealed, vault };
        Self {
            patience: kafka.request_timeout,
            cluster: Cluster::new(kafka, Right::Read),
            records: Arc::new(records),
            decompressing: Arc::new(Semaphore::new(1)),
        }
    }

    /// Describes the topic; `None` if it does not exist.
    pub async fn report(&self) -> Result<Option<TopicReport>, BoxError> {
        Ok(self.cluster.report().await?)
    }

    async fn offset_at(&self, partition: i32, time: i64) -> Result<i64, StreamError> {
        let question = OffsetAt { topic: &self.records.topic, partition, time };
        let asked = self.cluster.ask_leader(partition, Duration::ZERO, &question).await;
        let (offset, connection) = asked.map_err(unavailable)?;
        self.cluster.give_back(partition, connection);
        Ok(offset)
    }

    /// Reads the records of an answer whose head was read.
    async fn read(
        &self,
        partition: i32,
        offset: i64,
        head: FetchHead,
        mut connection: Connection,
    ) -> io::Result<Found> {
        let FetchHead { aborted, length, .. } = head;
        let span = Span { from: offset, aborted };
        let reader = Arc::clone(&self.records);
        if length > HELD_BYTES {
            let (runtime, patience) = (Handle::current(), self.patience);
            let read = move |abandoned: &AtomicBool| {
                let stream = connection.stream();
                let mut source = Arriving { runtime, patience, stream, left: length };
                let found = reader.read(partition, &mut source, length, span, abandoned)?;
                let is_read_whole = source.left == 0;
                Ok((found, is_read_whole.then_some(connection)))
            };
            let (found, connection) = self.aside(offset, read).await?;
            if let Some(connection) = connection {
                self.cluster.give_back(partition, connection);
            }
            return Ok(found);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        let mut stream = connection.stream().take(length);
        while stream.limit() > 0 {
            if timeout(self.patience, stream.read_buf(&mut bytes)).await?? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.cluster.give_back(partition, connection);
        let is_compressed = records::any_compressed(&bytes);
        let read = move |abandoned: &AtomicBool| {
            let found = reader.read(partition, &*bytes, length, span, abandoned)?;
            Ok((found, None))
        };
        if is_compressed {
            Ok(self.aside(offset, read).await?.0)
        } else {
            Ok(read(&AtomicBool::new(false))?.0)
        }
    }

    /// Reads on a blocking thread, and stops if this future is dropped.
    async fn aside(
        &self,
        offset: i64,
        read: impl FnOnce(&AtomicBool) -> io::Result<(Found, Option<Connection>)> + Send + 'static,
    ) -> io::Result<(Found, Option<Connection>)> {
        let turn = Arc::clone(&self.decompressing).acquire_owned().await;
        let waiting = Waiting::default();
        let abandoned = Arc::clone(&waiting.0);
        let done = spawn_blocking(move || {
            let _turn = turn;
            read(&abandoned)
        });
        match done.await {
            Ok(read) => read,
            // Otherwise this record would be read again forever.
            Err(panicked) if panicked.is_panic() => Ok((Found::undecodable(offset), None)),
            Err(stopped) => Err(stopped.into()),
        }
    }
}

/// When it is dropped, it tells the reading thread to stop.
#[derive(Debug, Default)]
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The bytes of an answer as they arrive, for a blocking thread.
struct Arriving<'a> {
    runtime: Handle,
    patience: Duration,
    stream: &'a mut BufReader<Transport>,
    left: u64,
}

impl Read for Arriving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let next = self.stream.read(&mut buffer[..most]);
        let read = self.runtime.block_on(async { timeout(self.patience, next).await })??;
        self.left -= read as u64;
        Ok(read)
    }
}

impl RecordReader {
    fn read(
        &self,
        partition: i32,
        source: impl Read,
        length: u64,
        span: Span,
        abandoned: &AtomicBool,
    ) -> io::Result<Found> {
        let keys = self.vault.keys().ok_or_else(|| io::Error::other(VaultClosed))?;
        let settings = DecodeSettings {
            default_ttl: self.default_ttl,
            keys: keys.payload.as_ref(),
            require_sealed: self.require_sealed,
        };
        records::read(source, length, span, abandoned, |raw| {
            let Raw { offset, written_at, value, headers } = raw;
            let place = Place { topic: &self.topic, partition, offset, written_at };
            decode(place, value, headers, settings)
        })
    }
}

impl MessageStream for KafkaStream {
    async fn partitions(&self) -> Result<Vec<i32>, StreamError> {
        self.cluster.partitions().await.map_err(unavailable)
    }

    async fn first_offset(&self, partition: i32, from: StartFrom) -> Result<i64, StreamError> {
        match from {
            StartFrom::Earliest => self.offset_at(partition, EARLIEST).await,
            StartFrom::Latest => self.offset_at(partition, LATEST).await,
            StartFrom::Since(time) => {
                // The end is read first: a record that is written in between comes after it.
                let end = self.offset_at(partition, LATEST).await?;
                let found = self.offset_at(partition, milliseconds(time)).await?;
                Ok(if found < 0 { end } else { found })
            }
        }
    }

    #[autometrics(struct_name = "KafkaStream")]
    async fn fetch(&self, partition: i32, offset: i64) -> Result<Fetched, StreamError> {
        if self.records.vault.keys().is_none() {
            return Err(StreamError::Unavailable(VaultClosed.into()));
        }
        let topic = &self.records.topic;
        let question = Fetch { topic, partition, offset, bytes: FETCH_BYTES, wait: WAIT };
        let asked = self.cluster.ask_leader(partition, WAIT, &question).await;
        let (head, connection) = asked.map_err(|error| {
            if error.is(ResponseError::OffsetOutOfRange) {
                StreamError::OutOfRange { offset }
            } else {
                unavailable(error)
            }
        })?;
        let (end, length) = (head.high_watermark, head.length);
        let Found { records, next_offset } =
            self.read(partition, offset, head, connection).await.map_err(unavailable)?;
        if next_offset == offset && length > 0 {
            return Err(StreamError::Unavailable("the broker sent no complete batch".into()));
        }
        Ok(Fetched { records, next_offset, lag: (end - next_offset).max(0) })
    }
}

fn unavailable(error: impl Into<BoxError>) -> StreamError {
    StreamError::Unavailable(error.into())
}
