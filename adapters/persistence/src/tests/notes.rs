use std::time::Duration;

use application::ports::CallNotes;
use domain::{GatewayName, MessageId};
use sea_orm::ConnectionTrait;

use super::{on_both_databases, support::new_id};
use crate::{Database, SqlCallNotes, SqlHousekeeping};

on_both_databases!(
    first_note_of_a_gateway_on_a_message_stays,
    racing_callers_get_the_same_note,
    note_is_deleted_an_hour_after_its_message_has_expired,
);

const MINUTE: Duration = Duration::from_secs(60);

fn gateway(name: &str) -> GatewayName {
    name.parse().unwrap()
}

fn message() -> MessageId {
    new_id().message(1)
}

async fn keep(notes: &dyn CallNotes, gateway: &GatewayName, id: MessageId, note: &str) -> String {
    notes.keep(gateway, id, note, MINUTE).await.unwrap()
}

async fn find(notes: &dyn CallNotes, gateway: &GatewayName, id: MessageId) -> Option<String> {
    notes.find(gateway, id).await.unwrap()
}

async fn first_note_of_a_gateway_on_a_message_stays(database: Database) {
    let notes = SqlCallNotes::new(database);
    let (main, other) = (gateway("main"), gateway("other"));
    let [first, second] = [message(), message()];
    assert_eq!(find(&notes, &main, first).await, None);

    assert_eq!(keep(&notes, &main, first, "a").await, "a");
    assert_eq!(keep(&notes, &main, first, "b").await, "a");
    assert_eq!(keep(&notes, &main, second, "c").await, "c");
    assert_eq!(keep(&notes, &other, first, "d").await, "d");

    assert_eq!(find(&notes, &main, first).await.as_deref(), Some("a"));
    assert_eq!(find(&notes, &main, second).await.as_deref(), Some("c"));
    assert_eq!(find(&notes, &other, first).await.as_deref(), Some("d"));
    assert_eq!(find(&notes, &other, second).await, None);
}

async fn racing_callers_get_the_same_note(database: Database) {
    let (main, id) = (gateway("main"), message());
    let callers = (0..8).map(|number: u8| {
        let (notes, main) = (SqlCallNotes::new(database.clone()), main.clone());
        tokio::spawn(async move { keep(&notes, &main, id, &number.to_string()).await })
    });
    let mut got = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        got.push(caller.await.unwrap());
    }

    got.dedup();
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!(find(&SqlCallNotes::new(database), &main, id).await, got.pop());
}

async fn note_is_deleted_an_hour_after_its_message_has_expired(database: Database) {
    let notes = SqlCallNotes::new(database.clone());
    let (main, id) = (gateway("main"), message());
    keep(&notes, &main, id, "a").await;
    let age = async |minutes: u32| {
        let sql = if database.is_postgres() {
            format!(
                "UPDATE gateway_note SET expires_at = expires_at - interval '{minutes} minutes'"
            )
        } else {
            format!("UPDATE gateway_note SET expires_at = expires_at - {minutes} * 60000")
        };
        database.connection().execute_unprepared(&sql).await.unwrap();
    };
    let housekeeping = SqlHousekeeping::new(database.clone());

    age(60).await;
    assert_eq!(housekeeping.prune(MINUTE).await.unwrap(), 0);
    assert_eq!(find(&notes, &main, id).await.as_deref(), Some("a"));

    age(2).await;
    assert_eq!(housekeeping.prune(MINUTE).await.unwrap(), 1);
    assert_eq!(find(&notes, &main, id).await, None);
}
