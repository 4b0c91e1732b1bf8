//! Finds the leader of each partition, and keeps the connections to the leaders.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kafka_protocol::{
    error::ResponseError,
    messages::{MetadataRequest, MetadataResponse, metadata_request::MetadataRequestTopic},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    KafkaSettings,
    connection::{Connection, Question, name},
    error::{ConnectionError, check},
    sasl::connect,
    topic::TopicReport,
};

/// The connections to the brokers of a cluster.
///
/// A connection is taken out while it is in use. If its use is abandoned, it is closed.
#[derive(Debug)]
pub(super) struct Cluster {
    settings: KafkaSettings,
    /// The right that the user needs on the topic.
    right: Right,
    /// A connection to any broker, to ask about the topic.
    any: Mutex<Option<Connection>>,
    /// A connection to the leader of each partition. A fetch that waits for records of one partition
    /// does not delay another partition.
    leaders: Mutex<HashMap<i32, Idle>>,
    /// The brokers of the latest metadata, as `host:port`.
    heard_of: Mutex<Vec<String>>,
    /// The number of the broker to try first.
    turn: AtomicUsize,
}

/// A right on a topic, with its code in Kafka's protocol.
#[derive(Debug, Clone, Copy)]
pub(super) enum Right {
    Read = 3,
    Write = 4,
    #[cfg(test)]
    Describe = 8,
}

/// A connection that is not in use.
#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// The partitions of the topic, and the address of the leader of each if it has one.
type Leaders = BTreeMap<i32, Option<String>>;

/// The first and the longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long the connection of a partition may be idle. One that is idle for longer belongs to a
/// partition that another consumer reads now.
const KEEP_IDLE: Duration = Duration::from_secs(60);

impl Cluster {
    pub(super) fn new(settings: KafkaSettings, right: Right) -> Self {
        Self {
            settings,
            right,
            any: Mutex::default(),
            leaders: Mutex::default(),
            heard_of: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Returns the partitions of the topic in ascending order; empty if the topic does not exist.
    ///
    /// Closes the connections of partitions that are no longer read.
    pub(super) async fn partitions(&self) -> Result<Vec<i32>, ConnectionError> {
        self.close_idle(Instant::now());
        let limit = self.settings.request_timeout;
        match timeout(limit, Box::pin(self.topic())).await {
            Ok(leaders) => Ok(leaders?.into_keys().collect()),
            Err(_) => Err(ConnectionError::TimedOut(limit)),
        }
    }

    /// Connects, asks for the topic, and closes the connection. Fails if that is not possible or the
    /// user lacks the right on the topic.
    pub(super) async fn check_access(&self) -> Result<(), ConnectionError> {
        self.partitions().await?;
        self.distrust();
        Ok(())
    }

    /// Asks the leader of a partition, within the request timeout plus `wait`.
    ///
    /// Looks for the leader again if it moved. The caller must [give back](Self::give_back) the
    /// connection.
    pub(super) async fn ask_leader<Q: Question>(
        &self,
        partition: i32,
        wait: Duration,
        question: &Q,
    ) -> Result<(Q::Answer, Connection), ConnectionError> {
        let limit = self.settings.request_timeout + wait;
        let deadline = Instant::now() + limit;
        let last_try = Instant::now() + self.settings.request_timeout / 2;
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = Box::pin(self.try_leader(partition, question));
            let error = match timeout_at(deadline, answer).await {
                Ok(Ok(answered)) => return Ok(answered),
                Ok(Err(error)) => error,
                Err(_) => ConnectionError::TimedOut(limit),
            };
            if !error.is_passing() || Instant::now() + pause > last_try {
                return Err(error);
            }
            tracing::debug!(partition, %error, "looking for the leader of the partition again");
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 3);
        }
    }

    pub(super) fn give_back(&self, partition: i32, connection: Connection) {
        lock(&self.leaders).insert(partition, Idle { connection, since: Instant::now() });
    }

    /// Closes the connections that have been idle for longer than [`KEEP_IDLE`].
    pub(super) fn close_idle(&self, now: Instant) {
        lock(&self.leaders).retain(|_, idle| now.duration_since(idle.since) <= KEEP_IDLE);
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> Vec<i32> {
        lock(&self.leaders).keys().copied().collect()
    }

    async fn try_leader<Q: Question>(
        &self,
        partition: i32,
        question: &Q,
    ) -> Result<(Q::Answer, Connection), ConnectionError> {
        let known = lock(&self.leaders).remove(&partition);
        let mut connection = match known {
            Some(idle) => idle.connection,
            None => self.connect_to_leader(partition).await?,
        };
        match question.ask(&mut connection).await {
            Ok(answer) => Ok((answer, connection)),
            Err(error) if error.is(ResponseError::TopicAuthorizationFailed) => {
                self.give_back(partition, connection);
                Err(self.no_right())
            }
            // The answer was complete, so the connection can be used again.
            Err(error @ ConnectionError::Refused(_)) if !error.is_passing() => {
                self.give_back(partition, connection);
                Err(error)
            }
            Err(error) => {
                self.distrust();
                Err(error)
            }
        }
    }

    async fn connect_to_leader(&self, partition: i32) -> Result<Connection, ConnectionError> {
        let leaders = self.topic().await?;
        let leader = leaders.get(&partition).ok_or(ConnectionError::NoSuchPartition)?;
        let connected = match leader {
            Some(leader) => self.open(leader, self.settings.request_timeout / 3).await,
            None => Err(ConnectionError::Refused(ResponseError::LeaderNotAvailable)),
        };
        connected.inspect_err(|_| self.distrust())
    }

    /// Makes the next metadata request go to another broker, because this one may be outdated.
    fn distrust(&self) {
        lock(&self.any).take();
    }

    /// Describes the topic, on a connection of its own; `None` if the topic does not exist. Fails if the
    /// user may not describe it.
    pub(super) async fn report(&self) -> Result<Option<TopicReport>, ConnectionError> {
        let limit = self.settings.request_timeout;
        let report = async {
            let mut connection = self.connect_to_any().await?;
            let with_rights = self.settings.security.is_on();
            let metadata = connection.metadata(&self.metadata_request(), with_rights).await?;
            let report = TopicReport::of(&metadata);
            if self.leaders_in(metadata)?.is_empty() {
                return Ok(None);
            }
            Ok(Some(report.with_settings(&mut connection, &self.settings.topic).await))
        };
        timeout(limit, Box::pin(report)).await.unwrap_or(Err(ConnectionError::TimedOut(limit)))
    }

    fn metadata_request(&self) -> MetadataRequest {
        let topic = MetadataRequestTopic::default().with_name(Some(name(&self.settings.topic)));
        MetadataRequest::default()
            .with_topics(Some(vec![topic]))
            .with_allow_auto_topic_creation(false)
    }

    async fn topic(&self) -> Result<Leaders, ConnectionError> {
        let request = self.metadata_request();
        let with_rights = self.settings.security.is_on();
        let known = lock(&self.any).take();
        // An idle connection may have been closed, or its broker may be gone.
        let from_known = match known {
            Some(mut connection) => {
                let limit = self.settings.request_timeout / 3;
                let answer = timeout(limit, connection.metadata(&request, with_rights)).await;
                answer.ok().and_then(Result::ok).map(|answer| (answer, connection))
            }
            None => None,
        };
        let (answer, connection) = if let Some(answered) = from_known {
            answered
        } else {
            let mut connection = self.connect_to_any().await?;
            (connection.metadata(&request, with_rights).await?, connection)
        };
        *lock(&self.any) = Some(connection);
        self.leaders_in(answer)
    }

    fn leaders_in(&self, answer: MetadataResponse) -> Result<Leaders, ConnectionError> {
        let brokers: HashMap<_, _> = answer
            .brokers
            .iter()
            .map(|broker| (broker.node_id, address(&broker.host, broker.port)))
            .collect();
        if !brokers.is_empty() {
            *lock(&self.heard_of) = brokers.values().cloned().collect();
        }
        let topic = answer.topics.into_iter().next();
        let topic = topic.ok_or_else(|| ConnectionError::Nonsense("no topic".to_owned()))?;
        match check(topic.error_code) {
            Err(error) if error.is(ResponseError::UnknownTopicOrPartition) => {
                return Ok(Leaders::new());
            }
            Err(error) if error.is(ResponseError::TopicAuthorizationFailed) => {
                return Err(self.no_right());
            }
            checked => checked?,
        }
        // Not positive: the broker does not report rights.
        let rights = topic.topic_authorized_operations;
        if rights > 0 && rights & 1 << self.right as i32 == 0 {
            return Err(self.no_right());
        }
        let partitions = topic.partitions.into_iter();
        Ok(partitions.map(|it| (it.partition_index, brokers.get(&it.leader_id).cloned())).collect())
    }

    fn no_right(&self) -> ConnectionError {
        let right = match self.right {
            Right::Read => "read",
            Right::Write => "write to",
            #[cfg(test)]
            Right::Describe => "see",
        };
        ConnectionError::NoRight { right, topic: self.settings.topic.clone() }
    }

    /// Connects to one of the known brokers or of the configured servers. Each gets an equal share of
    /// the request timeout.
    async fn connect_to_any(&self) -> Result<Connection, ConnectionError> {
        let mut brokers = lock(&self.heard_of).clone();
        for server in &self.settings.bootstrap_servers {
            if !brokers.contains(server) {
                brokers.push(server.clone());
            }
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % brokers.len().max(1);
        brokers.rotate_left(first);
        let share =
            self.settings.request_timeout / u32::try_from(brokers.len()).unwrap_or(1).max(1);
        let mut failure = ConnectionError::Nonsense("no broker is configured".to_owned());
        for broker in &brokers {
            match self.open(broker, share).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn open(&self, address: &str, limit: Duration) -> Result<Connection, ConnectionError> {
        let KafkaSettings { client_id, security, .. } = &self.settings;
        match timeout(limit, connect(address, client_id, security)).await {
            Ok(opened) => opened.map_err(|error| error.at(address)),
            Err(_) => Err(ConnectionError::TimedOut(limit)),
        }
    }
}

/// Makes an address. A broker reports an IPv6 host without brackets.
fn address(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
