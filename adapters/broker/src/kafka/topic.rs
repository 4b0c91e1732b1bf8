//! The state of the topic in the cluster, for an operator.

use std::time::Duration;

use kafka_protocol::{
    messages::{
        DescribeConfigsRequest, MetadataResponse, describe_configs_request::DescribeConfigsResource,
    },
    protocol::StrBytes,
};

use super::{
    connection::Connection,
    error::{ConnectionError, check},
};

/// The state of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicReport {
    pub partitions: usize,
    /// The partitions that have no leader: nothing can be written to them or read from them.
    pub without_leader: Vec<i32>,
    /// The number of replicas of the partition with the fewest.
    pub replicas: usize,
    /// The number of replicas that are in sync, of the partition with the fewest.
    pub in_sync: usize,
    /// The topic's `min.insync.replicas`. `None` if the user may not read the topic's settings.
    pub min_in_sync: Option<usize>,
    /// The topic's `retention.ms`. `None` if the user may not read it, or records are kept for ever.
    pub retention: Option<Duration>,
}

/// The kind of a resource that is a topic.
const TOPIC: i8 = 2;
/// The oldest version of the request that Kafka still supports.
const VERSION: i16 = 1;

impl TopicReport {
    /// Makes a report from the metadata of one topic.
    pub(super) fn of(metadata: &MetadataResponse) -> Self {
        let partitions = metadata.topics.iter().flat_map(|topic| &topic.partitions);
        let leaderless = partitions.clone().filter(|partition| partition.leader_id.0 < 0);
        Self {
            partitions: partitions.clone().count(),
            without_leader: leaderless.map(|partition| partition.partition_index).collect(),
            replicas: partitions.clone().map(|it| it.replica_nodes.len()).min().unwrap_or(0),
            in_sync: partitions.map(|it| it.isr_nodes.len()).min().unwrap_or(0),
            ..Self::default()
        }
    }

    /// Adds the settings of the topic, as far as the user may read them.
    pub(super) async fn with_settings(self, connection: &mut Connection, topic: &str) -> Self {
        let settings = settings(connection, topic).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the settings of the topic cannot be read");
            Vec::new()
        });
        let value = |name: &str| {
            let (_, value) = settings.iter().find(|(setting, _)| setting == name)?;
            value.parse().ok()
        };
        Self {
            min_in_sync: value("min.insync.replicas").and_then(|it: u64| usize::try_from(it).ok()),
            retention: value("retention.ms").map(Duration::from_millis),
            ..self
        }
    }
}

async fn settings(
    connection: &mut Connection,
    topic: &str,
) -> Result<Vec<(String, String)>, ConnectionError> {
    let names = ["min.insync.replicas", "retention.ms"].map(StrBytes::from_static_str);
    let resource = DescribeConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(StrBytes::from_string(topic.to_owned()))
        .with_configuration_keys(Some(names.into()));
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let answer = connection.ask(&request, VERSION).await?;
    let mut settings = Vec::new();
    for result in answer.results {
        check(result.error_code)?;
        let known = result.configs.into_iter();
        settings.extend(known.filter_map(|it| Some((it.name.to_string(), it.value?.to_string()))));
    }
    Ok(settings)
}
