//! Brokers whose answers and leader a test chooses.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, ApiVersionsResponse, BrokerId, FetchResponse, MetadataResponse, RequestHeader,
        ResponseHeader,
        api_versions_response::ApiVersion,
        fetch_response::{FetchableTopicResponse, PartitionData},
        metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        },
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::kafka::connection::name;

/// Two brokers, one of which leads the topic's partition.
pub(super) struct Fake {
    pub(super) servers: Vec<String>,
    state: Arc<State>,
}

struct State {
    ports: Vec<u16>,
    topic: String,
    leader: AtomicUsize,
    /// The leader that the metadata names.
    named: AtomicUsize,
    records: Bytes,
    fetches: AtomicUsize,
}

impl Fake {
    pub(super) async fn start(topic: &str, records: Vec<u8>) -> Self {
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let ports = listeners.iter().map(|it| it.local_addr().unwrap().port()).collect::<Vec<_>>();
        let state = Arc::new(State {
            ports: ports.clone(),
            topic: topic.to_owned(),
            leader: AtomicUsize::new(0),
            named: AtomicUsize::new(0),
            records: records.into(),
            fetches: AtomicUsize::new(0),
        });
        for (broker, listener) in listeners.into_iter().enumerate() {
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(broker, stream, Arc::clone(&state)));
                }
            });
        }
        let servers = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Self { servers, state }
    }

    /// Makes the other broker the leader. The metadata name it only after some more fetches.
    pub(super) fn move_leader(&self) {
        self.state.fetches.store(0, Ordering::SeqCst);
        self.state.leader.store(1, Ordering::SeqCst);
    }
}

async fn serve(broker: usize, mut stream: TcpStream, state: Arc<State>) -> Option<()> {
    loop {
        let length = stream.read_u32().await.ok()?;
        let mut frame = vec![0; usize::try_from(length).ok()?];
        stream.read_exact(&mut frame).await.ok()?;
        let mut frame = Bytes::from(frame);
        let header = RequestHeader::decode(&mut frame, 1).ok()?;
        let version = header.request_api_version;
        let key = ApiKey::try_from(header.request_api_key).ok()?;
        let mut answer = BytesMut::new();
        let response = ResponseHeader::default().with_correlation_id(header.correlation_id);
        response.encode(&mut answer, key.response_header_version(version)).ok()?;
        match key {
            ApiKey::ApiVersions => versions().encode(&mut answer, version),
            ApiKey::Metadata => state.metadata().encode(&mut answer, version),
            _ => state.fetched(broker).encode(&mut answer, version),
        }
        .ok()?;
        stream.write_u32(u32::try_from(answer.len()).ok()?).await.ok()?;
        stream.write_all(&answer).await.ok()?;
    }
}

fn versions() -> ApiVersionsResponse {
    let keys = [ApiKey::Metadata, ApiKey::ListOffsets, ApiKey::Fetch].map(|key| {
        // The oldest versions that we support, those of brokers before 1.0.
        let version = if matches!(key, ApiKey::ListOffsets) { 2 } else { 4 };
        ApiVersion::default().with_api_key(key as i16).with_min_version(0).with_max_version(version)
    });
    ApiVersionsResponse::default().with_api_keys(keys.to_vec())
}

impl State {
    fn metadata(&self) -> MetadataResponse {
        let brokers = self.ports.iter().zip(0..).map(|(port, id)| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_static_str("127.0.0.1"))
                .with_port((*port).into())
        });
        let leader = i32::try_from(self.named.load(Ordering::SeqCst)).unwrap();
        let partition = MetadataResponsePartition::default().with_leader_id(BrokerId(leader));
        let topic = MetadataResponseTopic::default()
            .with_name(Some(name(&self.topic)))
            .with_partitions(vec![partition]);
        MetadataResponse::default().with_brokers(brokers.collect()).with_topics(vec![topic])
    }

    fn fetched(&self, broker: usize) -> FetchResponse {
        let leader = self.leader.load(Ordering::SeqCst);
        let data = if broker == leader {
            PartitionData::default().with_high_watermark(1).with_records(Some(self.records.clone()))
        } else {
            if self.fetches.fetch_add(1, Ordering::SeqCst) == 1 {
                self.named.store(leader, Ordering::SeqCst);
            }
            PartitionData::default().with_error_code(ResponseError::NotLeaderOrFollower.code())
        };
        let topic = FetchableTopicResponse::default()
            .with_topic(name(&self.topic))
            .with_partitions(vec![data]);
        FetchResponse::default().with_responses(vec![topic])
    }
}
