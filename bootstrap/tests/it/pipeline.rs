//! The three binaries, several of each, on PostgreSQL and Kafka.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::support::{Sms, Stack, eventually, phone, post_all};

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_reaches_the_gateway_once() {
    const MESSAGES: usize = 5_000;
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[]).ready().await;
    let processors =
        [stack.start("processor", &[]).ready().await, stack.start("processor", &[]).ready().await];
    let mut consumers = Vec::new();
    for _ in 0..3 {
        consumers.push(stack.start("consumer", &[]).ready().await);
    }

    let phones: Vec<_> = (0..MESSAGES).map(phone).collect();
    let port = api.port;
    let load = tokio::spawn(post_all(port, phones.clone(), 64));
    // Consumers start and stop during the load.
    eventually("under way", PATIENCE, async || (stack.gateway.count() > 500).then_some(())).await;
    let (status, _) = consumers.remove(0).stop("TERM").await;
    assert_eq!(status.code(), Some(0));
    consumers.push(stack.start("consumer", &[]).ready().await);
    let answers = load.await.unwrap();

    assert_eq!(answers.statuses, HashMap::from([(200, MESSAGES)]), "{}", api.stderr());
    eventually("all received", PATIENCE, async || {
        (stack.gateway.count() >= MESSAGES).then_some(())
    })
    .await;
    eventually("all recorded", PATIENCE, async || {
        let sent =
            stack.postgres.number("SELECT count(*) FROM delivery WHERE state = 'sent'").await;
        (sent == i64::try_from(MESSAGES).unwrap()).then_some(())
    })
    .await;
    let received = stack.gateway.received();
    assert_eq!(received.len(), MESSAGES);
    assert_eq!(received.iter().map(|sms| &sms.id).collect::<HashSet<_>>().len(), MESSAGES);
    let to: HashSet<_> = received.iter().map(|sms| &sms.phone).collect();
    assert_eq!(to, phones.iter().collect::<HashSet<_>>());
    assert_eq!(
        stack.postgres.number("SELECT count(*) FROM delivery WHERE code IS NOT NULL").await,
        0
    );
    assert_eq!(stack.postgres.number("SELECT count(*) FROM outbox").await, 0);

    // The records of the topic have the sent messages, in the format of the Go service.
    let by_id: HashMap<String, &Sms> = received.iter().map(|sms| (sms.id.clone(), sms)).collect();
    let records: Vec<_> = stack.topic.records().await.concat();
    assert!(records.len() >= MESSAGES);
    for record in &records {
        let record = &record.record;
        let value: serde_json::Value =
            serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        let sms = by_id[std::str::from_utf8(&record.headers["ce_id"]).unwrap()];
        assert_eq!(value, serde_json::json!({"phone": sms.phone, "code": sms.code}));
        assert_eq!(sms.text, format!("Your code: {}", sms.code));
    }
    let mut published = 0.0;
    for processor in &processors {
        published += processor.metric("processed_messages").await.unwrap();
    }
    // There are more records if the answer to a request was lost.
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let produced = records.len() as f64;
    assert!(published <= produced, "{published} counted, {produced} in the topic");
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let messages = MESSAGES as f64;
    assert!(published >= messages, "{published} counted of {messages}");
}

#[tokio::test]
async fn every_group_gets_every_message() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[]).ready().await;
    let _processor = stack.start("processor", &[]).ready().await;
    let group = |id| [("CONSUMER_GROUP_ID", id), ("CONSUMER_AUTO_OFFSET_RESET", "earliest")];
    let _one = stack.start("consumer", &group("1")).ready().await;
    post_all(api.port, (0..200).map(phone).collect(), 8).await;
    eventually("one group", PATIENCE, async || (stack.gateway.count() == 200).then_some(())).await;

    let _two = stack.start("consumer", &group("2")).ready().await;

    eventually("both groups", PATIENCE, async || (stack.gateway.count() == 400).then_some(()))
        .await;
    let mut times: HashMap<String, usize> = HashMap::new();
    for sms in stack.gateway.received() {
        *times.entry(sms.id).or_default() += 1;
    }
    assert_eq!(times.len(), 200);
    assert!(times.values().all(|times| *times == 2));
}

#[tokio::test]
async fn messages_to_one_phone_arrive_in_order() {
    const PHONES: usize = 10;
    const EACH: usize = 30;
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[("LIMIT_PHONE", "off")]).ready().await;
    let small = [("PROCESSOR_TAKE_MESSAGE_LIMIT", "7")];
    let _processors = [
        stack.start("processor", &small).ready().await,
        stack.start("processor", &small).ready().await,
    ];
    // A group that begins at `latest` would get the first messages late.
    let from_the_start = [("CONSUMER_AUTO_OFFSET_RESET", "earliest")];
    let _consumers = [
        stack.start("consumer", &from_the_start).ready().await,
        stack.start("consumer", &from_the_start).ready().await,
    ];

    // There is one client for each phone. It waits for each answer before its next request.
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..PHONES {
        clients.spawn(post_all(api.port, vec![phone(number); EACH], 1));
    }
    clients.join_all().await;
    eventually("all received", PATIENCE, async || {
        (stack.gateway.count() == PHONES * EACH).then_some(())
    })
    .await;

    let mut accepted: HashMap<String, Vec<(String, String)>> = HashMap::new();
    for record in stack.topic.records().await.concat() {
        let text = |name: &str| String::from_utf8(record.record.headers[name].clone()).unwrap();
        let value: serde_json::Value =
            serde_json::from_slice(record.record.value.as_ref().unwrap()).unwrap();
        let phone = value["phone"].as_str().unwrap().to_owned();
        let sequence = format!("{:>20}", text("ce_sequence"));
        accepted.entry(phone).or_default().push((sequence, text("ce_id")));
    }
    for (phone, mut accepted) in accepted {
        accepted.sort();
        accepted.dedup();
        let expected: Vec<_> = accepted.into_iter().map(|(_, id)| id).collect();
        let received = stack.gateway.received();
        let received: Vec<_> =
            received.iter().filter(|sms| sms.phone == phone).map(|sms| sms.id.clone()).collect();
        assert_eq!(received, expected, "{phone}");
    }
}

#[tokio::test]
async fn record_of_another_producer_is_delivered_once() {
    let Some(stack) = Stack::new().await else { return };
    let _one = stack.start("consumer", &[("CONSUMER_AUTO_OFFSET_RESET", "earliest")]).ready().await;

    let lines = "{\"phone\":\"79991234567\",\"code\":\"123456\"}\nnot json\n{\"phone\":\"79991234568\",\"code\":\"0042\"}\n";
    stack.topic.console_produce(lines).await;

    eventually("both received", PATIENCE, async || (stack.gateway.count() == 2).then_some(()))
        .await;
    let mut received: Vec<_> =
        stack.gateway.received().into_iter().map(|sms| (sms.phone, sms.code)).collect();
    received.sort();
    let expected = [("79991234567", "123456"), ("79991234568", "0042")];
    assert_eq!(received, expected.map(|(phone, code)| (phone.to_owned(), code.to_owned())));
    eventually("buried", PATIENCE, async || {
        (stack.postgres.number("SELECT count(*) FROM dead_letter").await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn first_group_reads_every_message_that_is_still_valid() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[]).ready().await;
    // The test ends before any message is published again.
    let late = [("PROCESSOR_CONFIRM_WITHIN", "3600")];
    let processor = stack.start("processor", &late).ready().await;
    post_all(api.port, (0..100).map(phone).collect(), 8).await;
    eventually("published", PATIENCE, async || {
        (processor.metric("processed_messages").await? >= 100.0).then_some(())
    })
    .await;
    stack.topic.console_produce("{\"phone\":\"79991234567\",\"code\":\"123456\"}\n").await;
    let group = |id| [("CONSUMER_GROUP_ID", id), ("CONSUMER_AUTO_OFFSET_RESET", "latest")];

    let _first = stack.start("consumer", &group("1")).ready().await;

    eventually("all received", PATIENCE, async || (stack.gateway.count() == 101).then_some(()))
        .await;

    let _second = stack.start("consumer", &group("2")).ready().await;
    eventually("the second has begun", PATIENCE, async || {
        let begun = "SELECT count(*) FROM partition_lease
            WHERE group_id = '2' AND next_offset IS NOT NULL";
        (stack.postgres.number(begun).await == 4).then_some(())
    })
    .await;
    post_all(api.port, vec![phone(200)], 1).await;
    eventually("each sends the new one", PATIENCE, async || {
        (stack.gateway.count() == 103).then_some(())
    })
    .await;
    let of_the_second = "SELECT count(*) FROM delivery WHERE group_id = '2'";
    assert_eq!(stack.postgres.number(of_the_second).await, 1);
}
