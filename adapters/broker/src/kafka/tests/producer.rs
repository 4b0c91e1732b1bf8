//! A producer that sends any bytes, and transactions, which rskafka cannot do.

use adapters_wire::conformance::in_time;
use bytes::Bytes;
use kafka_protocol::{
    messages::{
        AddPartitionsToTxnRequest, CreateTopicsRequest, EndTxnRequest, FindCoordinatorRequest,
        InitProducerIdRequest, ProduceRequest, ProducerId, TransactionalId,
        add_partitions_to_txn_request::AddPartitionsToTxnTopic,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::StrBytes,
};

use crate::kafka::{
    KafkaSettings,
    batches::{TRANSACTIONAL, TestBatch},
    connection::{Connection, name},
    error::check,
    sasl::connect,
};

pub(super) struct Producer {
    connection: Connection,
    topic: String,
}

/// An open transaction.
pub(super) struct Transaction {
    id: TransactionalId,
    producer: i64,
    epoch: i16,
    sequence: i32,
}

impl Producer {
    pub(super) async fn new(settings: &KafkaSettings) -> Self {
        let server = &*settings.bootstrap_servers[0];
        let connection =
            in_time(connect(server, "messager-test", &settings.security)).await.unwrap();
        Self { connection, topic: settings.topic.clone() }
    }

    /// Creates the topic with one partition, which accepts large batches.
    pub(super) async fn create_topic(&mut self) {
        let most = CreatableTopicConfig::default()
            .with_name(StrBytes::from_static_str("max.message.bytes"))
            .with_value(Some(StrBytes::from_static_str("100000000")));
        let topic = CreatableTopic::default()
            .with_name(name(&self.topic))
            .with_num_partitions(1)
            .with_replication_factor(1)
            .with_configs(vec![most]);
        let request =
            CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
        let answer = in_time(self.connection.ask(&request, 5)).await.unwrap();
        check(answer.topics[0].error_code).unwrap();
    }

    /// Writes a batch to partition 0, and returns its first offset.
    pub(super) async fn send(&mut self, batch: &TestBatch) -> i64 {
        self.produce(batch, None).await
    }

    async fn produce(&mut self, batch: &TestBatch, id: Option<TransactionalId>) -> i64 {
        let records = Bytes::from(batch.bytes());
        let partition = PartitionProduceData::default().with_records(Some(records));
        let topic = TopicProduceData::default()
            .with_name(name(&self.topic))
            .with_partition_data(vec![partition]);
        let request = ProduceRequest::default()
            .with_transactional_id(id)
            .with_acks(-1)
            .with_timeout_ms(30_000)
            .with_topic_data(vec![topic]);
        in_time(async {
            loop {
                let answer = self.connection.ask(&request, 8).await.unwrap();
                let answer = &answer.responses[0].partition_responses[0];
                match check(answer.error_code) {
                    Ok(()) => break answer.base_offset,
                    // The broker may not lead a new topic at once.
                    Err(error) => assert!(error.is_passing(), "{error}"),
                }
            }
        })
        .await
    }

    pub(super) async fn begin(&mut self, id: &str) -> Transaction {
        let id = TransactionalId(StrBytes::from_string(id.to_owned()));
        let coordinator = FindCoordinatorRequest::default().with_key(id.0.clone()).with_key_type(1);
        let init = InitProducerIdRequest::default()
            .with_transactional_id(Some(id.clone()))
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let started = in_time(async {
            loop {
                // Creates the topic of the transactions, which takes a moment.
                self.connection.ask(&coordinator, 2).await.unwrap();
                let answer = self.connection.ask(&init, 2).await.unwrap();
                if answer.error_code == 0 {
                    break answer;
                }
            }
        })
        .await;
        let (producer, epoch) = (started.producer_id.0, started.producer_epoch);
        let topic = AddPartitionsToTxnTopic::default()
            .with_name(name(&self.topic))
            .with_partitions(vec![0]);
        let add = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id.clone())
            .with_v3_and_below_producer_id(ProducerId(producer))
            .with_v3_and_below_producer_epoch(epoch)
            .with_v3_and_below_topics(vec![topic]);
        in_time(async {
            loop {
                let answer = self.connection.ask(&add, 2).await.unwrap();
                let result = &answer.results_by_topic_v3_and_below[0].results_by_partition[0];
                match check(result.partition_error_code) {
                    Ok(()) => break,
                    Err(error) => assert!(error.is_passing(), "{error}"),
                }
            }
        })
        .await;
        Transaction { id, producer, epoch, sequence: 0 }
    }

    pub(super) async fn send_in(
        &mut self,
        transaction: &mut Transaction,
        batch: &TestBatch,
    ) -> i64 {
        let Transaction { id, producer, epoch, sequence } = transaction;
        let batch = TestBatch {
            attributes: batch.attributes | TRANSACTIONAL,
            producer: *producer,
            epoch: *epoch,
            sequence: *sequence,
            ..batch.clone()
        };
        *sequence += batch.count;
        self.produce(&batch, Some(id.clone())).await
    }

    pub(super) async fn end(&mut self, transaction: Transaction, commits: bool) {
        let request = EndTxnRequest::default()
            .with_transactional_id(transaction.id)
            .with_producer_id(ProducerId(transaction.producer))
            .with_producer_epoch(transaction.epoch)
            .with_committed(commits);
        let answer = in_time(self.connection.ask(&request, 2)).await.unwrap();
        check(answer.error_code).unwrap();
    }
}
