//! The stories of verifications, messages and phones.

use application::ports::{
    CallOutcome, DeliveryLedger, Incoming, OutcomeClass, Receipt, Verdict, Verifications,
};
use domain::VerificationId;
use sea_orm::ConnectionTrait;

use super::{
    on_both_databases,
    support::{
        LONG, accepted, approve, batch, calls, enqueue, id_of, incoming, ledger, new_id,
        new_message, phone, published, reach, start,
    },
};
use crate::{Database, Looked, MessageStory, SqlStories, SqlVerifications, Story};

on_both_databases!(
    story_follows_a_message_from_the_outbox_to_its_receipt,
    story_of_a_message_without_verification_is_that_of_the_ledger,
    message_that_no_group_has_names_the_dead_letters_of_its_partition,
    stories_of_a_phone_are_the_newest_first_and_bounded,
    unknown_ids_have_no_story,
);

async fn of(database: &Database, id: VerificationId) -> Story {
    SqlStories::new(database.clone()).of_verification(id).await.unwrap().unwrap()
}

fn only(story: &Story) -> &MessageStory {
    assert_eq!(story.messages.len(), 1, "{story:?}");
    &story.messages[0]
}

async fn story_follows_a_message_from_the_outbox_to_its_receipt(database: Database) {
    let send = start(&phone(1));
    accepted(&enqueue(&database, &send).await);
    let id = id_of(&send);

    let story = of(&database, id).await;
    assert_eq!(story.verification.as_ref().unwrap().id, id);
    let waiting = only(&story).waiting.clone().unwrap();
    assert!(!waiting.is_published);
    assert_eq!(waiting.phone.as_str(), phone(1));

    let record = published(&database).await.remove(0);
    reach(&database, record.sequence.unwrap()).await;
    let story = of(&database, id).await;
    let waiting = only(&story).waiting.clone().unwrap();
    assert!(waiting.is_published);

    let (ledger, lease) = ledger(&database, "1").await;
    ledger.admit(&lease, &batch(&[record])).await.unwrap();
    let story = of(&database, id).await;
    assert_eq!((&only(&story).waiting, &*only(&story).entries[0].state), (&None, "pending"));

    let call = ledger.start(&lease, &calls(&[id.message(1)]), LONG).await.unwrap().calls.remove(0);
    let verdict = Verdict::Sent {
        reference: Some("ref-1".to_owned()),
        receipts_by_reference: false,
        awaited: None,
    };
    let outcome = CallOutcome {
        id: call.id,
        attempt: call.attempt,
        verdict,
        class: OutcomeClass::Accepted,
        detail: "HTTP 200".to_owned(),
    };
    ledger.finish(&[outcome]).await.unwrap();
    let verifications = SqlVerifications::new(database.clone());
    verifications.note_receipt(id.message(1), Receipt::Delivered).await.unwrap();
    approve(&verifications, id).await;

    let story = SqlStories::new(database.clone()).of_message(id.message(1)).await.unwrap().unwrap();
    assert_eq!(story.verification.as_ref().unwrap().status.as_str(), "approved");
    let entry = &only(&story).entries[0];
    assert_eq!((&*entry.group, &*entry.state), ("1", "sent"));
    assert_eq!(entry.reference.as_deref(), Some("ref-1"));
    assert!(entry.delivered_at.is_some() && entry.ended_at.is_some());
    let call = &entry.calls[0];
    assert_eq!(
        (&*call.gateway, &*call.outcome, &*call.detail),
        ("default", "accepted", "HTTP 200")
    );
    assert!(call.called_at.is_some() && call.called_at <= call.ended_at, "{call:?}");
    assert!(call.called_at >= entry.admitted_at, "{entry:?}");
}

async fn story_of_a_message_without_verification_is_that_of_the_ledger(database: Database) {
    let mut record = incoming(&phone(1));
    record.message.id = "5f0c4a52-0b1b-5d3c-9c1e-0a1b2c3d4e5f".parse().unwrap();
    let id = record.message.id;
    let (ledger, lease) = ledger(&database, "1").await;
    ledger.admit(&lease, &batch(&[record])).await.unwrap();

    let stories = SqlStories::new(database.clone());
    let story = stories.of_message(id).await.unwrap().unwrap();
    assert_eq!((story.verification.is_none(), only(&story).id), (true, id));

    let found = stories.of_phone(&phone(1).parse().unwrap(), 9, 1_000, &|_| ()).await.unwrap();
    assert_eq!(found.stories, [story]);
}

async fn message_that_no_group_has_names_the_dead_letters_of_its_partition(database: Database) {
    let _ = ledger(&database, "1").await;
    let send = start(&phone(1));
    accepted(&enqueue(&database, &send).await);
    let later =
        if database.is_postgres() { "now() + interval '1 s'" } else { "unixepoch() * 1000 + 1000" };
    for partition in [0, 1] {
        let sql = format!(
            "INSERT INTO dead_letter
                 (group_id, topic, partition, record_offset, reason, recorded_at)
             VALUES ('1', 'message', {partition}, 1, 'x', {later})"
        );
        database.connection().execute_unprepared(&sql).await.unwrap();
    }

    // The group has one partition, so a record of the phone is in partition 0.
    let story = of(&database, id_of(&send)).await;
    assert_eq!(only(&story).dead_letters, [1]);
}

async fn stories_of_a_phone_are_the_newest_first_and_bounded(database: Database) {
    let mut sends = Vec::new();
    for place in 0..5 {
        let send = new_message(&phone(place % 2));
        accepted(&enqueue(&database, &send).await);
        sends.push(send);
    }
    let mut expected: Vec<VerificationId> = [0, 2, 4].map(|place| id_of(&sends[place])).into();
    expected.sort();
    expected.reverse();
    let stories = SqlStories::new(database.clone());
    let of_phone = async |limit, most| {
        let number = phone(0).parse().unwrap();
        let found = stories.of_phone(&number, limit, most, &|_| ()).await.unwrap();
        let id = |story: &Story| story.verification.as_ref().unwrap().id;
        (found.stories.iter().map(id).collect::<Vec<_>>(), found.has_more, found.looked)
    };

    let all = Looked { rows: 5, everywhere: true };
    assert_eq!(of_phone(9, 1_000).await, (expected.clone(), false, all));
    assert_eq!(of_phone(2, 1_000).await, (expected[..2].to_vec(), true, all));
    // Without a look at the tables, the newest one is still known by its phone.
    let (found, _, looked) = of_phone(9, 0).await;
    assert_eq!((found, looked), (vec![id_of(&sends[4])], Looked { rows: 0, everywhere: false }));
}

async fn unknown_ids_have_no_story(database: Database) {
    let stories = SqlStories::new(database);

    assert_eq!(stories.of_verification(new_id()).await.unwrap(), None);
    assert_eq!(stories.of_message(new_id().message(1)).await.unwrap(), None);
    let Incoming { message, .. } = incoming(&phone(1));
    assert_eq!(stories.of_message(message.id).await.unwrap(), None);
}
