-- The privileges that each part of the service needs in PostgreSQL.
--
-- Run it as the owner of the tables, after `messager migrate up`, and again after each update:
--     psql --set ON_ERROR_STOP=1 --file adapters/persistence/src/grants.sql DATABASE
-- The roles must exist (docs/privileges.md). Each part reads this file too: `/readyz` is 503 while
-- one of the privileges of its role is missing.

-- api
GRANT SELECT ON seaql_migrations TO messager_api;
GRANT SELECT, INSERT, UPDATE ON write_probe TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox TO messager_api;
GRANT USAGE ON SEQUENCE outbox_sequence_seq TO messager_api;
GRANT SELECT ON relay TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON delivery TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON verification TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON phone TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON limit_counter TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON guard_count TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON guard_decision TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency TO messager_api;
GRANT SELECT, UPDATE ON api_key TO messager_api;
GRANT SELECT, INSERT ON secret TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON event TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway_receipt TO messager_api;
GRANT SELECT, UPDATE, DELETE ON gateway_note TO messager_api;
GRANT SELECT ON gateway_channel TO messager_api;
GRANT SELECT, UPDATE, DELETE ON awaited_receipt TO messager_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON extra_send TO messager_api;
GRANT SELECT, DELETE ON gateway_spending TO messager_api;
GRANT SELECT, DELETE ON gateway_sample TO messager_api;
GRANT SELECT, DELETE ON gateway_factor TO messager_api;
GRANT SELECT, UPDATE, DELETE ON dead_letter TO messager_api;
GRANT SELECT, UPDATE, DELETE ON partition_lease TO messager_api;
GRANT SELECT, DELETE ON consumer_member TO messager_api;
GRANT SELECT, DELETE ON gateway_state TO messager_api;
GRANT SELECT ON queue_partition TO messager_api;
GRANT SELECT, DELETE ON queue_record TO messager_api;

-- processor
GRANT SELECT ON seaql_migrations TO messager_processor;
GRANT SELECT, INSERT, UPDATE ON write_probe TO messager_processor;
GRANT SELECT, UPDATE, DELETE ON outbox TO messager_processor;
GRANT SELECT ON SEQUENCE outbox_sequence_seq TO messager_processor;
GRANT SELECT, INSERT, UPDATE ON relay TO messager_processor;
GRANT SELECT, INSERT, UPDATE, DELETE ON delivery TO messager_processor;
GRANT SELECT, UPDATE, DELETE ON dead_letter TO messager_processor;
GRANT SELECT, UPDATE, DELETE ON partition_lease TO messager_processor;
GRANT SELECT, DELETE ON consumer_member TO messager_processor;
GRANT SELECT, DELETE ON gateway_state TO messager_processor;
GRANT SELECT ON queue_partition TO messager_processor;
GRANT SELECT, DELETE ON queue_record TO messager_processor;
GRANT SELECT ON verification TO messager_processor;
GRANT SELECT, INSERT, UPDATE, DELETE ON event TO messager_processor;
GRANT SELECT, UPDATE, DELETE ON gateway_receipt TO messager_processor;
GRANT SELECT, UPDATE, DELETE ON gateway_note TO messager_processor;
GRANT SELECT ON gateway_channel TO messager_processor;
GRANT SELECT, UPDATE, DELETE ON awaited_receipt TO messager_processor;
GRANT SELECT, UPDATE, DELETE ON extra_send TO messager_processor;
GRANT SELECT, DELETE ON gateway_spending TO messager_processor;
GRANT SELECT, DELETE ON gateway_sample TO messager_processor;
GRANT SELECT, DELETE ON gateway_factor TO messager_processor;

-- consumer
GRANT SELECT ON seaql_migrations TO messager_consumer;
GRANT SELECT, INSERT, UPDATE ON write_probe TO messager_consumer;
GRANT SELECT, UPDATE, DELETE ON outbox TO messager_consumer;
GRANT SELECT ON SEQUENCE outbox_sequence_seq TO messager_consumer;
GRANT SELECT ON relay TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON delivery TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letter TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON partition_lease TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON consumer_member TO messager_consumer;
GRANT SELECT ON gateway_control TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway_state TO messager_consumer;
GRANT SELECT ON verification TO messager_consumer;
GRANT SELECT, INSERT ON secret TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON event TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway_receipt TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway_note TO messager_consumer;
GRANT SELECT, INSERT, UPDATE ON gateway_channel TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON awaited_receipt TO messager_consumer;
GRANT SELECT, UPDATE, DELETE ON extra_send TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway_spending TO messager_consumer;
GRANT SELECT, INSERT, DELETE ON gateway_sample TO messager_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway_factor TO messager_consumer;
GRANT SELECT ON queue_partition TO messager_consumer;
GRANT SELECT, DELETE ON queue_record TO messager_consumer;

-- The queue in the database: for processor and consumer without Kafka
GRANT SELECT ON partition_lease TO messager_queue;
GRANT SELECT, INSERT, UPDATE ON queue_partition TO messager_queue;
GRANT SELECT, INSERT, DELETE ON queue_record TO messager_queue;

-- The commands of `messager`: keys, limits, dead-letters, gateways, guard, message, forget,
-- status, secrets
GRANT SELECT ON seaql_migrations TO messager_operator;
GRANT SELECT, INSERT, UPDATE ON api_key TO messager_operator;
GRANT SELECT, DELETE ON dead_letter TO messager_operator;
GRANT SELECT, INSERT, UPDATE ON delivery TO messager_operator;
GRANT SELECT, DELETE ON outbox TO messager_operator;
GRANT SELECT ON SEQUENCE outbox_sequence_seq TO messager_operator;
GRANT SELECT ON SEQUENCE delivery_place_seq TO messager_operator;
GRANT SELECT ON relay TO messager_operator;
GRANT SELECT ON partition_lease TO messager_operator;
GRANT SELECT ON consumer_member TO messager_operator;
GRANT SELECT ON queue_partition TO messager_operator;
GRANT SELECT, DELETE ON event TO messager_operator;
GRANT SELECT, DELETE ON awaited_receipt TO messager_operator;
GRANT SELECT, DELETE ON extra_send TO messager_operator;
GRANT SELECT, DELETE ON gateway_note TO messager_operator;
GRANT SELECT, DELETE ON gateway_receipt TO messager_operator;
GRANT SELECT, DELETE ON idempotency TO messager_operator;
GRANT SELECT, UPDATE ON queue_record TO messager_operator;
GRANT SELECT, INSERT, DELETE ON gateway_control TO messager_operator;
GRANT SELECT ON gateway_state TO messager_operator;
GRANT SELECT ON gateway_sample TO messager_operator;
GRANT SELECT ON gateway_factor TO messager_operator;
GRANT SELECT ON gateway_spending TO messager_operator;
GRANT SELECT ON guard_decision TO messager_operator;
GRANT SELECT, INSERT, UPDATE ON guard_count TO messager_operator;
GRANT SELECT, UPDATE, DELETE ON limit_counter TO messager_operator;
GRANT SELECT, UPDATE, DELETE ON phone TO messager_operator;
GRANT SELECT, UPDATE, DELETE ON verification TO messager_operator;
GRANT SELECT, DELETE ON secret TO messager_operator;
