//! Kafka: whether the topic can be written and read, and how safely it is stored.

use std::{fmt::Display, time::Duration};

use adapters_broker::TopicReport;
use adapters_persistence::Database;
use application::{Chain, Vault};

use super::findings::Findings;
use crate::{
    broker::Stream,
    config::Config,
    roles::{kafka_broker, stream},
};

pub(super) async fn examine(config: &Config, database: &Database, findings: &mut Findings) {
    let ttl = config.codes.ttl;
    let topic = &config.relay.broker.topic;
    if config.relay.broker.is_kafka() {
        let report = kafka_broker(config).report().await;
        judge("producer", topic, report.map_err(|error| Chain(&*error).to_string()), ttl, findings);
    } else {
        findings.ok("producer", "the embedded queue needs no broker");
    }
    let topic = &config.consumer.broker.topic;
    if let Stream::Kafka(stream) = stream(config, database, topic, &Vault::default()) {
        let report = stream.report().await;
        judge("reader", topic, report.map_err(|error| Chain(&*error).to_string()), ttl, findings);
    }
}

/// Judges the report of one side. `ttl` is the life of a code.
fn judge(
    side: &'static str,
    topic: &str,
    report: Result<Option<TopicReport>, impl Display>,
    ttl: Duration,
    findings: &mut Findings,
) {
    match report {
        Err(error) => findings.fail(
            side,
            format!("Kafka: {error}"),
            "check the addresses and ports, KAFKA_SECURITY_PROTOCOL and the user's rights: docs/kafka.md",
        ),
        Ok(None) => findings.warn(
            side,
            format!("there is no topic {topic:?}"),
            "the processor creates it when it starts, if it may; otherwise create it yourself",
        ),
        Ok(Some(report)) => judge_topic(side, topic, &report, ttl, findings),
    }
}

fn judge_topic(
    side: &'static str,
    topic: &str,
    report: &TopicReport,
    ttl: Duration,
    findings: &mut Findings,
) {
    let TopicReport { partitions, without_leader, replicas, in_sync, min_in_sync, retention } =
        report;
    if !without_leader.is_empty() {
        findings.fail(
            side,
            format!(
                "{} of {partitions} partitions of {topic:?} have no leader",
                without_leader.len()
            ),
            "start the brokers that have them",
        );
        return;
    }
    if min_in_sync.is_some_and(|least| *in_sync < least) {
        findings.fail(
            side,
            format!("a partition of {topic:?} has {in_sync} replicas in sync, which is below min.insync.replicas"),
            "start the missing brokers: Kafka refuses what the processor writes",
        );
        return;
    }
    let unsafe_storage = match (replicas, min_in_sync) {
        (0 | 1, _) => Some("it has one replica, so one lost disk loses published messages"),
        (_, Some(1)) => Some("min.insync.replicas is 1, so a message may be on one broker only"),
        (_, Some(least)) if least >= replicas => Some(
            "min.insync.replicas equals the number of replicas, so the loss of one broker stops writes",
        ),
        _ => None,
    };
    if let Some(why) = unsafe_storage {
        let advice = "three replicas and min.insync.replicas=2 survive the loss of a broker";
        findings.warn(side, format!("topic {topic:?}: {why}"), advice);
    } else {
        findings.ok(
            side,
            format!("topic {topic:?} has {partitions} partitions with {replicas} replicas"),
        );
    }
    if retention.is_some_and(|kept| kept < ttl * 2) {
        findings.warn(
            side,
            format!("topic {topic:?} keeps records for less than twice CODE_TTL"),
            "raise retention.ms: a consumer that was away finds its messages gone",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{super::findings::State, *};

    const HOUR: Duration = Duration::from_secs(3_600);

    fn good() -> TopicReport {
        TopicReport {
            partitions: 4,
            without_leader: Vec::new(),
            replicas: 3,
            in_sync: 3,
            min_in_sync: Some(2),
            retention: Some(24 * HOUR),
        }
    }

    fn judged(report: Result<Option<TopicReport>, &str>) -> Vec<(State, String)> {
        let mut findings = Findings::default();
        judge("reader", "message", report, HOUR, &mut findings);
        findings.all().iter().map(|it| (it.state, it.text.clone())).collect()
    }

    #[test]
    fn safe_topic_is_ok() {
        let ok = (State::Ok, "topic \"message\" has 4 partitions with 3 replicas".to_owned());
        assert_eq!(judged(Ok(Some(good()))), std::slice::from_ref(&ok));
        assert_eq!(judged(Ok(Some(TopicReport { min_in_sync: None, ..good() }))), [ok]);
    }

    #[test]
    fn faults_of_the_topic_are_named() {
        use State::{Failure, Warning};

        for (report, state, words) in [
            (Err("no broker answers"), Failure, "Kafka: no broker answers"),
            (Ok(None), Warning, "there is no topic"),
            (Ok(Some(TopicReport { without_leader: vec![1], ..good() })), Failure, "no leader"),
            (Ok(Some(TopicReport { in_sync: 1, ..good() })), Failure, "1 replicas in sync"),
            (
                Ok(Some(TopicReport { replicas: 1, in_sync: 1, min_in_sync: None, ..good() })),
                Warning,
                "one replica",
            ),
            (Ok(Some(TopicReport { min_in_sync: Some(1), ..good() })), Warning, "is 1, so"),
            (Ok(Some(TopicReport { min_in_sync: Some(3), ..good() })), Warning, "equals"),
        ] {
            let found = judged(report);
            assert_eq!((found.len(), found[0].0), (1, state), "{words}: {found:?}");
            assert!(found[0].1.contains(words), "{words}: {found:?}");
        }
        let short = judged(Ok(Some(TopicReport { retention: Some(HOUR), ..good() })));
        assert!(short[1].1.contains("less than twice CODE_TTL"), "{short:?}");
    }
}
