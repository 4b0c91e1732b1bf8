//! Binaries stop, and other binaries take over their work.

use std::{collections::HashSet, time::Duration};

use super::support::{Stack, eventually, phone, post_all};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn stopped_consumer_hands_over_at_once() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[]).ready().await;
    let _processor = stack.start("processor", &[]).ready().await;
    let leaving = stack.start("consumer", &[]).ready().await;
    let _staying = stack.start("consumer", &[]).ready().await;
    eventually("shared", PATIENCE, async || {
        (leaving.metric("messager_partitions_held").await? < 2.5).then_some(())
    })
    .await;
    stack.gateway.answer_after(300);
    post_all(api.port, (0..100).map(phone).collect(), 8).await;
    eventually("under way", PATIENCE, async || (stack.gateway.count() > 0).then_some(())).await;

    let (status, _) = leaving.stop("TERM").await;

    assert_eq!(status.code(), Some(0));
    // This is less than the lease of ten seconds.
    eventually("all received", Duration::from_secs(8), async || {
        (stack.gateway.count() >= 100).then_some(())
    })
    .await;
    let received = stack.gateway.received();
    assert_eq!(received.len(), 100);
    assert_eq!(received.iter().map(|sms| &sms.id).collect::<HashSet<_>>().len(), 100);
}

#[tokio::test]
async fn partitions_of_a_dead_consumer_are_taken_over() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[]).ready().await;
    let _processor = stack.start("processor", &[]).ready().await;
    let dying = stack.start("consumer", &[]).ready().await;
    let _staying = stack.start("consumer", &[]).ready().await;
    eventually("shared", PATIENCE, async || {
        (dying.metric("messager_partitions_held").await? < 2.5).then_some(())
    })
    .await;

    dying.signal("KILL").await;
    post_all(api.port, (0..100).map(phone).collect(), 8).await;

    eventually("all received", Duration::from_secs(15), async || {
        (stack.gateway.count() >= 100).then_some(())
    })
    .await;
    assert_eq!(stack.gateway.count(), 100);
}

#[tokio::test]
async fn stopping_api_answers_the_requests_that_it_has_received() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[]).ready().await;
    let load = tokio::spawn(post_all(api.port, (0..2_000).map(phone).collect(), 32));
    eventually("under way", PATIENCE, async || {
        (api.metric("total_messages{status=\"200\"}").await? > 100.0).then_some(())
    })
    .await;

    let (status, _) = api.stop("TERM").await;

    assert_eq!(status.code(), Some(0));
    let answers = load.await.unwrap();
    let stored = stack.postgres.number("SELECT count(*) FROM outbox").await;
    assert_eq!(stored, i64::try_from(answers.accepted.len()).unwrap());
    assert!(answers.statuses.keys().all(|status| [0, 200].contains(status)), "{answers:?}");
}
