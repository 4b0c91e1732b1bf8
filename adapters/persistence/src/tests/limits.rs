use std::time::Duration;

use application::ports::{Enqueued, NewSend, Outbox, Violation};
use tokio::task::JoinSet;

use super::{
    on_both_databases,
    support::{
        accepted, count, counters, enqueue, in_time, limited, names, new_message, one_writer,
        phone, start,
    },
};
use crate::{CoalescingOutbox, Database, OutboxSettings};

on_both_databases!(
    each_window_of_a_list_is_enforced,
    ended_window_begins_again,
    batch_with_one_phone_many_times_respects_its_windows,
    both_origins_count_in_one_window,
    refused_send_moves_no_counter,
    send_that_its_phone_refuses_takes_no_room_of_a_counter,
    every_send_of_a_flood_without_room_is_refused,
    concurrent_writers_never_exceed_a_quota,
    send_without_limits_is_never_refused,
);

fn refused(answer: Enqueued) -> Vec<Violation> {
    match answer {
        Enqueued::Limited(violations) => violations,
        answer => panic!("{answer:?}"),
    }
}

/// Sends all at once, and returns how many were accepted.
async fn accepted_of(outbox: &CoalescingOutbox, sends: Vec<NewSend>) -> usize {
    let mut requests = JoinSet::new();
    for send in sends {
        let outbox = outbox.clone();
        requests.spawn(async move { outbox.enqueue(send).await.unwrap() });
    }
    let answers = requests.join_all().await;
    answers.iter().filter(|answer| matches!(answer, Enqueued::Accepted { .. })).count()
}

async fn each_window_of_a_list_is_enforced(database: Database) {
    const LIST: &str = "2/1h,3/1d,4/30d";
    for _ in 0..2 {
        accepted(&enqueue(&database, &limited(LIST, new_message(&phone(1)))).await);
    }
    let violations = refused(enqueue(&database, &limited(LIST, new_message(&phone(1)))).await);
    assert_eq!(names(&violations), ["phone-1h"]);
    let wait = violations[0].retry_after;
    assert!(wait > Duration::from_secs(3_500) && wait <= Duration::from_secs(3_600), "{wait:?}");

    // Windows are matched by their place.
    let violations =
        refused(enqueue(&database, &limited("9/1h,2/1d,2/30d", new_message(&phone(1)))).await);
    assert_eq!(names(&violations), ["phone-1d", "phone-30d"]);
    accepted(&enqueue(&database, &limited(LIST, new_message(&phone(2)))).await);
}

async fn ended_window_begins_again(database: Database) {
    const LIST: &str = "1/1s,2/1h";
    accepted(&enqueue(&database, &limited(LIST, new_message(&phone(1)))).await);
    let again = limited(LIST, new_message(&phone(1)));
    let violations = refused(enqueue(&database, &again).await);
    assert_eq!(names(&violations), ["phone-1s"]);

    in_time(async {
        while let Enqueued::Limited(violations) = enqueue(&database, &again).await {
            assert_eq!(names(&violations), ["phone-1s"]);
            tokio::time::sleep(violations[0].retry_after).await;
        }
    })
    .await;

    let violations = refused(enqueue(&database, &limited(LIST, new_message(&phone(1)))).await);
    assert!(names(&violations).contains(&"phone-1h"), "{violations:?}");
}

async fn batch_with_one_phone_many_times_respects_its_windows(database: Database) {
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());
    let sends = || (0..30).map(|_| limited("20/1h", new_message(&phone(1)))).collect();
    accepted(&outbox.enqueue(limited("20/1h", new_message(&phone(1)))).await.unwrap());

    assert_eq!(accepted_of(&outbox, sends()).await, 19);
    assert_eq!(accepted_of(&outbox, sends()).await, 0);

    assert_eq!(count(&database, "outbox").await, 20);
    assert_eq!(count(&database, "verification").await, 20);
    assert_eq!(count(&database, "phone WHERE sends_1 = 20").await, 1);
}

async fn both_origins_count_in_one_window(database: Database) {
    for _ in 0..3 {
        accepted(&enqueue(&database, &limited("20/1h", new_message(&phone(1)))).await);
    }
    let over = NewSend { ttl: Duration::ZERO, ..new_message(&phone(1)) };
    accepted(&enqueue(&database, &limited("20/1h", over)).await);

    let of_v1 = limited("4/1h,10/1d", start(&phone(1)));
    assert_eq!(names(&refused(enqueue(&database, &of_v1).await)), ["phone-1h"]);
    accepted(&enqueue(&database, &limited("5/1h,10/1d", start(&phone(1)))).await);
    accepted(&enqueue(&database, &limited("20/1h", new_message(&phone(1)))).await);
}

async fn refused_send_moves_no_counter(database: Database) {
    let of = |number, extra| NewSend { extra, ..limited("1/1h", start(&phone(number))) };
    let ip = || counters("ip", "1/1h,5/1d", "192.0.2.1");
    accepted(&enqueue(&database, &of(1, ip())).await);

    // Refused for its ip.
    let violations = refused(enqueue(&database, &of(2, ip())).await);
    assert_eq!(names(&violations), ["ip-1h"]);
    assert!(violations[0].retry_after > Duration::from_secs(3_500));
    assert_eq!(count(&database, "phone").await, 1);
    // Refused for its phone, whose verification has ended.
    let over = NewSend { ttl: Duration::ZERO, ..of(3, Vec::new()) };
    accepted(&enqueue(&database, &over).await);
    let other = counters("ip", "9/1h", "192.0.2.2");
    let violations = refused(enqueue(&database, &of(3, other.clone())).await);
    assert_eq!(names(&violations), ["phone-1h"]);
    // Refused because one is pending.
    let answer = enqueue(&database, &of(1, other)).await;
    assert!(matches!(answer, Enqueued::Pending(_)), "{answer:?}");

    assert_eq!(count(&database, "outbox").await, 2);
    assert_eq!(count(&database, "verification").await, 2);
    assert_eq!(count(&database, "phone WHERE sends_1 = 1").await, 2);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 2);
    assert_eq!(count(&database, "limit_counter").await, 2);
}

async fn send_that_its_phone_refuses_takes_no_room_of_a_counter(database: Database) {
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());
    for _ in 0..3 {
        accepted(&outbox.enqueue(limited("3/1h", new_message(&phone(1)))).await.unwrap());
    }
    let of = |number| NewSend {
        extra: counters("ip", "2/1h", "192.0.2.1"),
        ..limited("3/1h", new_message(&phone(number)))
    };

    let sends = [1, 1, 1, 2, 3, 4, 5].map(of).to_vec();
    assert_eq!(accepted_of(&outbox, sends).await, 2);

    assert_eq!(count(&database, "limit_counter WHERE used = 2").await, 1);
    assert_eq!(count(&database, "outbox").await, 5);
}

async fn every_send_of_a_flood_without_room_is_refused(database: Database) {
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());
    let of = |number| NewSend {
        extra: counters("ip", "1/1h", "192.0.2.1"),
        ..limited("3/1h", start(&phone(number)))
    };
    accepted(&outbox.enqueue(of(1)).await.unwrap());

    let mut requests = JoinSet::new();
    for _ in 0..200 {
        let (outbox, send) = (outbox.clone(), of(2));
        requests.spawn(async move { outbox.enqueue(send).await.unwrap() });
    }
    for answer in requests.join_all().await {
        assert_eq!(names(&refused(answer)), ["ip-1h"]);
    }

    assert_eq!(count(&database, "phone").await, 1);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 1);
}

async fn concurrent_writers_never_exceed_a_quota(database: Database) {
    let settings = OutboxSettings { writers: 2, batch: 8, ..one_writer() };
    let outboxes: Vec<_> = (0..3).map(|_| CoalescingOutbox::start(&database, settings)).collect();
    let mut requests = JoinSet::new();
    for number in 0..240 {
        let outbox = outboxes[number % 3].0.clone();
        // A third of them to one phone, and all under one of two keys.
        let phone = phone(if number % 4 == 0 { 1 } else { number });
        let key = if number % 2 == 0 { "DE" } else { "FR" };
        let send = NewSend {
            extra: counters("region", "50/1h,40/1d", key),
            ..limited("11/1h", new_message(&phone))
        };
        requests.spawn(async move { (send.clone(), outbox.enqueue(send).await) });
    }
    let answers = requests.join_all().await;

    let stored = answers.iter().filter(|(_, it)| matches!(it, Ok(Enqueued::Accepted { .. })));
    let stored: Vec<&NewSend> = stored.map(|(send, _)| send).collect();
    let to_one = stored.iter().filter(|send| send.message.phone.as_str() == phone(1)).count();
    for key in ["DE", "FR"] {
        let under = stored.iter().filter(|send| send.extra[0].key == key).count();
        assert!(under <= 40, "{under} under {key}");
        let used = format!("limit_counter WHERE key = '{key}' AND used = {under}");
        assert_eq!(count(&database, &used).await, 2);
    }
    assert!(to_one <= 11, "{to_one} to one phone");
    assert!(stored.len() > 60, "{} stored", stored.len());
    assert_eq!(count(&database, "outbox").await, i64::try_from(stored.len()).unwrap());
    let sends = format!("phone WHERE phone = '{}' AND sends_1 = {to_one}", phone(1));
    assert_eq!(count(&database, &sends).await, i64::from(to_one > 0));
}

async fn send_without_limits_is_never_refused(database: Database) {
    let (outbox, _writers) = CoalescingOutbox::start(&database, one_writer());

    let sends = (0..100).map(|_| new_message(&phone(1))).collect();
    assert_eq!(accepted_of(&outbox, sends).await, 100);
    assert_eq!(count(&database, "outbox").await, 100);
}
