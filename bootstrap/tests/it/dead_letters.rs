use std::time::Duration;

use crate::support::{Stack, eventually, phone, post_all};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `messager dead-letters …`. Returns whether it succeeded, and its output.
async fn dead_letters(stack: &Stack, args: &[&str], env: &[(&str, &str)]) -> (bool, String) {
    let output = stack.start("messager", env).args(&["dead-letters"]).args(args).output().await;
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn dead_letter_can_be_shown_retried_and_discarded() {
    let Some(stack) = Stack::new().await else { return };
    let _one = stack.start("consumer", &[("CONSUMER_AUTO_OFFSET_RESET", "earliest")]).ready().await;
    stack
        .topic
        .console_produce("{\"phone\":\"79991234567\",\"code\":\"777123\"}\n{\"p\":1}\n")
        .await;
    eventually("one sent, one buried", PATIENCE, async || {
        let buried = stack.postgres.number("SELECT count(*) FROM dead_letter").await;
        (stack.gateway.count() == 1 && buried == 1).then_some(())
    })
    .await;

    let (listed, list) = dead_letters(&stack, &["list"], &[]).await;
    let (shown, show) = dead_letters(&stack, &["show", "1"], &[]).await;
    assert!(listed && shown, "{list}{show}");
    for text in [&list, &show] {
        assert!(text.contains(&stack.topic.name) && text.contains("lacks a phone"), "{text}");
    }
    let still = dead_letters(&stack, &["retry", "1"], &[]).await;
    assert!(!still.0 && still.1.contains("the record still cannot be read"), "{still:?}");

    // Pretend that an older version in another group could not read the first record.
    let older = "INSERT INTO dead_letter (group_id, topic, partition, record_offset, reason)
        SELECT '2', topic, partition, next_offset - 1, 'too new' FROM partition_lease
        WHERE next_offset > 0 AND NOT EXISTS (
            SELECT 1 FROM dead_letter AS known
            WHERE known.partition = partition_lease.partition
              AND known.record_offset = next_offset - 1)
        RETURNING id";
    // Both records may be in one partition, the message before the other.
    let first = "INSERT INTO dead_letter (group_id, topic, partition, record_offset, reason)
        SELECT '2', topic, partition, record_offset - 1, 'too new' FROM dead_letter RETURNING id";
    let apart = stack.postgres.number("SELECT count(*) FROM partition_lease WHERE next_offset = 1");
    let id = stack.postgres.number(if apart.await > 0 { older } else { first }).await.to_string();
    eventually("older than a second", PATIENCE, async || {
        let older = "SELECT count(*) FROM delivery WHERE accepted_at < now() - interval '1 second'";
        (stack.postgres.number(older).await == 1).then_some(())
    })
    .await;
    let late = dead_letters(&stack, &["retry", &id], &[("CODE_TTL", "1")]).await;
    assert!(!late.0 && late.1.contains("has expired"), "{late:?}");
    let _two = stack.start("consumer", &[("CONSUMER_GROUP_ID", "2")]).ready().await;
    let retried = dead_letters(&stack, &["retry", &id], &[]).await;
    assert!(retried.0 && retried.1.contains("will be sent"), "{retried:?}");
    eventually("sent again", PATIENCE, async || (stack.gateway.count() == 2).then_some(())).await;
    assert_eq!(stack.gateway.received()[1].code, "777123");

    let discarded = dead_letters(&stack, &["discard", "1", &id], &[]).await;
    assert!(!discarded.0 && discarded.1.contains("1: discarded"), "{discarded:?}");
    assert_eq!(stack.postgres.number("SELECT count(*) FROM dead_letter").await, 0);
}

#[tokio::test]
async fn unsealed_record_becomes_a_dead_letter_if_seals_are_required() {
    let Some(stack) = Stack::new().await else { return };
    let key = format!("k1:{}=", "A".repeat(43));
    let strict = [("REQUIRE_SEALED", "true"), ("PAYLOAD_KEY", &*key)];
    let [require, sealing] = strict;
    let reading = [require, sealing, ("CONSUMER_AUTO_OFFSET_RESET", "earliest")];
    let _consumer = stack.start("consumer", &reading).ready().await;
    let api = stack.start("api", &[sealing]).ready().await;
    let _processor = stack.start("processor", &[sealing]).ready().await;

    stack.topic.console_produce("{\"Phone\":\"79991234567\",\"Code\":\"777123\"}\n").await;
    post_all(api.port, vec![phone(1)], 1).await;

    eventually("one sent, one buried", PATIENCE, async || {
        let buried = stack.postgres.number("SELECT count(*) FROM dead_letter").await;
        (stack.gateway.count() == 1 && buried == 1).then_some(())
    })
    .await;
    assert_eq!(stack.gateway.received()[0].phone, phone(1));
    let still = dead_letters(&stack, &["retry", "1"], &strict).await;
    assert!(
        !still.0 && still.1.contains("the record still cannot be read: not sealed"),
        "{still:?}"
    );
    let lenient = [("REQUIRE_SEALED", "false"), ("PAYLOAD_KEY", &*key)];
    let retried = dead_letters(&stack, &["retry", "1"], &lenient).await;
    assert!(retried.0 && retried.1.contains("will be sent"), "{retried:?}");
    eventually("sent all the same", PATIENCE, async || (stack.gateway.count() == 2).then_some(()))
        .await;
    assert_eq!(stack.gateway.received()[1].code, "777123");
}

/// Decompressed, the record is far larger than the memory that the consumer may use.
#[tokio::test]
async fn large_records_do_not_grow_the_memory() {
    let Some(stack) = Stack::new().await else { return };
    let consumer =
        stack.start("consumer", &[("CONSUMER_AUTO_OFFSET_RESET", "earliest")]).ready().await;
    let message =
        |phone| format!(r#"{{"phone":"7999123456{phone}","code":"777123"}}"#).into_bytes();
    let values = vec![message(1), vec![0; 256 * 1024 * 1024], message(2)];

    let now = stack.postgres.number("SELECT (extract(epoch FROM now()) * 1000)::bigint").await;
    stack.topic.produce_compressed(values, now).await;

    eventually("two sent, one buried", PATIENCE, async || {
        let buried = stack.postgres.number("SELECT count(*) FROM dead_letter").await;
        (stack.gateway.count() == 2 && buried == 1).then_some(())
    })
    .await;
    let (_, list) = dead_letters(&stack, &["list"], &[]).await;
    assert!(list.contains("the value is too large"), "{list}");
    let peak = consumer.peak_memory();
    assert!(peak < 200 * 1024 * 1024, "{peak} bytes");
}
