//! One connection to one broker, for reading. It sends a request, reads the answer, and then sends
//! the next request.
//!
//! `kafka-protocol` encodes and decodes the messages, except the answer to a fetch: its records are
//! read as a stream and are not held in memory as a whole.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiVersionsRequest, BrokerId, FetchRequest, ListOffsetsRequest, MetadataRequest,
        RequestHeader, ResponseHeader, TopicName,
        fetch_request::{FetchPartition, FetchTopic},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    },
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

use super::{
    error::{ConnectionError, check},
    records::Aborted,
    security::KafkaTls,
    transport::{Transport, tls_error},
};

/// A connection to a broker.
///
/// A caller that drops a request before its end must drop the connection too.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<Transport>,
    client_id: StrBytes,
    last_id: i32,
    versions: Versions,
}

/// The versions of the requests that both sides support.
#[derive(Debug, Clone, Copy)]
struct Versions {
    metadata: i16,
    list_offsets: i16,
    fetch: i16,
}

/// The part of an answer before the records.
#[derive(Debug)]
pub(super) struct FetchHead {
    pub(super) high_watermark: i64,
    pub(super) aborted: Vec<Aborted>,
    /// The number of bytes of records that follow.
    pub(super) length: u64,
}

/// The longest answer without records. A longer one is invalid.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

/// The version of the metadata from which on a broker says what the user may do with a topic.
const RIGHTS_SINCE: i16 = 8;

/// The replica id of every client.
const CLIENT: BrokerId = BrokerId(-1);
/// The isolation level at which only committed records are read.
const READ_COMMITTED: i8 = 1;

/// Timestamps that stand for the end and the beginning of a partition.
pub(super) const LATEST: i64 = -1;
pub(super) const EARLIEST: i64 = -2;

/// A request to the leader of a partition.
pub(super) trait Question: Sync {
    type Answer: Send;

    fn ask(
        &self,
        leader: &mut Connection,
    ) -> impl Future<Output = Result<Self::Answer, ConnectionError>> + Send;
}

/// Fetches records from `offset` on: up to `bytes`, or one batch that is larger.
///
/// The caller then reads the records from [`Connection::stream`].
#[derive(Debug)]
pub(super) struct Fetch<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) bytes: i32,
    pub(super) wait: Duration,
}

/// Asks for the first offset at a time, which may be [`EARLIEST`] or [`LATEST`].
#[derive(Debug)]
pub(super) struct OffsetAt<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) time: i64,
}

impl Question for Fetch<'_> {
    type Answer = FetchHead;

    async fn ask(&self, leader: &mut Connection) -> Result<FetchHead, ConnectionError> {
        let wanted = FetchPartition::default()
            .with_partition(self.partition)
            .with_fetch_offset(self.offset)
            .with_partition_max_bytes(self.bytes);
        let topic =
            FetchTopic::default().with_topic(name(self.topic)).with_partitions(vec![wanted]);
        let request = FetchRequest::default()
            .with_replica_id(CLIENT)
            .with_max_wait_ms(i32::try_from(self.wait.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(1)
            .with_max_bytes(self.bytes)
            .with_isolation_level(READ_COMMITTED)
            // No fetch session: each request is complete.
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let version = leader.versions.fetch;
        let length = leader.send(&request, version).await?;
        leader.fetch_head(length, version, self.partition).await
    }
}

impl Question for OffsetAt<'_> {
    type Answer = i64;

    async fn ask(&self, leader: &mut Connection) -> Result<i64, ConnectionError> {
        let wanted = ListOffsetsPartition::default()
            .with_partition_index(self.partition)
            .with_timestamp(self.time);
        let topic =
            ListOffsetsTopic::default().with_name(name(self.topic)).with_partitions(vec![wanted]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(CLIENT)
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![topic]);
        let answer = leader.ask(&request, leader.versions.list_offsets).await?;
        let found = answer.topics.first().and_then(|topic| topic.partitions.first());
        let found = found.ok_or_else(|| ConnectionError::nonsense("no partition"))?;
        check(found.error_code)?;
        Ok(found.offset)
    }
}

impl Connection {
    /// Opens a connection, without a login: see `sasl::connect`.
    pub(super) async fn open(
        address: &str,
        client_id: &str,
        tls: Option<&KafkaTls>,
    ) -> Result<Self, ConnectionError> {
        let transport = Transport::open(address, tls).await?;
        let mut connection = Self {
            stream: BufReader::new(transport),
            client_id: StrBytes::from_string(client_id.to_owned()),
            last_id: 0,
            versions: Versions { metadata: 4, list_offsets: 2, fetch: 4 },
        };
        connection.versions = connection.common_versions().await.map_err(|error| match error {
            ConnectionError::Io(error) => tls_error(&error).unwrap_or(ConnectionError::Io(error)),
            error => error,
        })?;
        Ok(connection)
    }

    async fn common_versions(&mut self) -> Result<Versions, ConnectionError> {
        let answer = self.ask(&ApiVersionsRequest::default(), 0).await?;
        check(answer.error_code)?;
        let common = |name, key, ours: std::ops::RangeInclusive<i16>| {
            let theirs = answer.api_keys.iter().find(|it| it.api_key == key);
            theirs
                .map(|it| it.max_version.min(*ours.end()))
                .filter(|version| theirs.is_some_and(|it| it.min_version <= *version))
                .filter(|version| ours.contains(version))
                .ok_or(ConnectionError::NoCommonVersion(name))
        };
        Ok(Versions {
            // Since 4 a request can forbid that the topic is created.
            metadata: common("Metadata", MetadataRequest::KEY, 4..=12)?,
            // Since 2 it supports transactions.
            list_offsets: common("ListOffsets", ListOffsetsRequest::KEY, 2..=7)?,
            // Since 4 it supports transactions, since 10 zstd. Until 11 the head has one form.
            fetch: common("Fetch", FetchRequest::KEY, 4..=11)?,
        })
    }

    pub(super) async fn metadata(
        &mut self,
        request: &MetadataRequest,
        with_rights: bool,
    ) -> Result<<MetadataRequest as Request>::Response, ConnectionError> {
        let version = self.versions.metadata;
        let with_rights = with_rights && version >= RIGHTS_SINCE;
        let request = request.clone().with_include_topic_authorized_operations(with_rights);
        self.ask(&request, version).await
    }

    async fn fetch_head(
        &mut self,
        length: usize,
        version: i16,
        partition: i32,
    ) -> Result<FetchHead, ConnectionError> {
        let mut head = (&mut self.stream).take(length as u64);
        expect(head.read_i32().await?, self.last_id, "the correlation id")?;
        let _throttled = head.read_i32().await?;
        if version >= 7 {
            check(head.read_i16().await?)?;
            let _session = head.read_i32().await?;
        }
        expect(head.read_i32().await?, 1, "the number of topics")?;
        let name = head.read_i16().await?;
        let mut name = vec![0; usize::try_from(name).map_err(ConnectionError::nonsense)?];
        head.read_exact(&mut name).await?;
        expect(head.read_i32().await?, 1, "the number of partitions")?;
        expect(head.read_i32().await?, partition, "the partition")?;
        let error = head.read_i16().await?;
        let high_watermark = head.read_i64().await?;
        let _last_stable_offset = head.read_i64().await?;
        if version >= 5 {
            let _log_start_offset = head.read_i64().await?;
        }
        let mut aborted = Vec::new();
        for _ in 0..head.read_i32().await? {
            let (producer, first_offset) = (head.read_i64().await?, head.read_i64().await?);
            aborted.push(Aborted { producer, first_offset });
        }
        if version >= 11 {
            let _preferred_read_replica = head.read_i32().await?;
        }
        let length = u64::try_from(head.read_i32().await?).unwrap_or(0);
        expect(head.limit(), length, "the length of the records")?;
        if error != 0 {
            // The rest is skipped, so that the connection can be used again.
            tokio::io::copy(&mut head, &mut tokio::io::sink()).await?;
        }
        check(error)?;
        Ok(FetchHead { high_watermark, aborted, length })
    }

    pub(super) fn stream(&mut self) -> &mut BufReader<Transport> {
        &mut self.stream
    }

    /// Sends a request and reads its answer.
    pub(super) async fn ask<R: Request>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<R::Response, ConnectionError> {
        let length = self.send(request, version).await?;
        if length > LONGEST_ANSWER {
            return Err(ConnectionError::Nonsense(format!("{length} bytes")));
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        let mut answer = Bytes::from(answer);
        let header = R::Response::header_version(version);
        let header =
            ResponseHeader::decode(&mut answer, header).map_err(ConnectionError::nonsense)?;
        expect(header.correlation_id, self.last_id, "the correlation id")?;
        R::Response::decode(&mut answer, version).map_err(ConnectionError::nonsense)
    }

    /// Sends a request, and returns the length of the answer, which the caller then reads.
    async fn send<R: Request>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<usize, ConnectionError> {
        self.last_id = self.last_id.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.last_id)
            .with_client_id(Some(self.client_id.clone()));
        let mut frame = BytesMut::zeroed(4);
        header
            .encode(&mut frame, R::header_version(version))
            .and_then(|()| request.encode(&mut frame, version))
            .map_err(ConnectionError::nonsense)?;
        let length = i32::try_from(frame.len() - 4).map_err(ConnectionError::nonsense)?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&frame).await?;
        self.stream.flush().await?;
        let length = self.stream.read_i32().await?;
        usize::try_from(length).map_err(ConnectionError::nonsense)
    }
}

pub(super) fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

fn expect<T: Copy + PartialEq + fmt::Debug>(
    found: T,
    expected: T,
    what: &str,
) -> Result<(), ConnectionError> {
    if found == expected {
        Ok(())
    } else {
        Err(ConnectionError::Nonsense(format!("{what} is {found:?}, not {expected:?}")))
    }
}
