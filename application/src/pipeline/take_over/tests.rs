use std::time::{Duration, SystemTime};

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    ports::{Fetched, Incoming, MockGoTable, MockMessageStream, Record, Unreadable},
    testing::{sealing_vault, vault},
};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const ALL: Ids = Ids { after: 0, last: 100 };

fn row(id: i64, code: &str) -> GoRow {
    GoRow {
        id,
        reserved_to: id,
        created_at: id,
        accepted_at: NOW + Duration::from_secs(3_600),
        content: Ok(("79990000001".parse().unwrap(), code.parse().unwrap())),
    }
}

fn invalid(id: i64) -> GoRow {
    GoRow { content: Err("the phone is invalid"), ..row(id, "123456") }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

/// A table that returns these rows, and accepts whichever are taken.
fn table(claimed: bool, rows: Vec<GoRow>) -> MockGoTable {
    let mut table = MockGoTable::new();
    table
        .expect_waiting()
        .withf(move |_, of, _| *of == claimed)
        .returning(move |_, _, _| Ok(rows.clone()));
    table
}

fn takes(table: &mut MockGoTable, ids: &'static [i64]) {
    table
        .expect_take()
        .withf(move |rows| rows.iter().map(|it| it.row.id).eq(ids.iter().copied()))
        .once()
        .returning(|rows| Ok(rows.len() as u64));
}

#[tokio::test]
async fn rows_become_messages_whose_ids_follow_from_the_rows() {
    let mut table = table(false, vec![row(7, "123456"), row(9, "482915")]);
    table
        .expect_take()
        .withf(|rows| {
            let [first, second] = rows else { return false };
            let CarriedCode::Clear { code, template: None } = &second.message.code else {
                return false;
            };
            first.message.id == MessageId::of_go_row(7, 7)
                && second.message.id == MessageId::of_go_row(9, 9)
                && code.as_str() == "482915"
                && first.trace != second.trace
        })
        .once()
        .returning(|_| Ok(2));

    let taken = TakeOver::new(table, vault(), rng()).execute(ALL).await.unwrap();

    assert_eq!(taken, TakenOver { taken: 2, ..TakenOver::default() });
}

#[tokio::test]
async fn code_is_sealed_if_there_is_a_payload_key() {
    let vault = sealing_vault();
    let keys = vault.keys().unwrap().payload.clone().unwrap();
    let mut table = table(false, vec![row(7, "123456")]);
    table
        .expect_take()
        .withf(move |rows| {
            let Message { id, code: CarriedCode::Sealed(sealed), .. } = &rows[0].message else {
                return false;
            };
            keys.open(*id, sealed).is_ok_and(|it| it.phone.as_str() == "79990000001")
        })
        .once()
        .returning(|_| Ok(1));

    TakeOver::new(table, vault.clone(), rng()).execute(ALL).await.unwrap();
}

#[tokio::test]
async fn row_without_a_valid_message_is_left() {
    let mut some = table(false, vec![invalid(3), row(7, "123456")]);
    takes(&mut some, &[7]);
    let none = table(false, vec![invalid(3)]);

    let some = TakeOver::new(some, vault(), rng()).execute(ALL).await.unwrap();
    let none = TakeOver::new(none, vault(), rng()).execute(ALL).await.unwrap();

    assert_eq!((some.taken, none.taken), (1, 0));
}

#[tokio::test]
async fn next_batch_begins_after_the_last_row_or_after_the_part() {
    let full = (1..=1_000).map(|id| row(id, "123456")).collect();
    let mut full = table(false, full);
    full.expect_take().returning(|rows| Ok(rows.len() as u64));
    let all = Ids { after: 0, last: 200_000 };

    let full = TakeOver::new(full, vault(), rng()).execute(all).await.unwrap();
    let empty = TakeOver::new(table(false, vec![]), vault(), rng()).execute(all).await.unwrap();
    let last = Ids { after: 150_000, last: 200_000 };
    let last = TakeOver::new(table(false, vec![]), vault(), rng()).execute(last).await.unwrap();

    assert_eq!((full.next, empty.next, last.next), (Some(1_000), Some(PART), None));
}

#[tokio::test]
async fn nothing_is_taken_before_the_keys_are_loaded() {
    let take = TakeOver::new(table(false, vec![row(7, "123456")]), Vault::default(), rng());

    let refused = take.execute(ALL).await;

    assert!(matches!(refused, Err(TakeOverError::Closed(_))), "{refused:?}");
}

/// A topic with two partitions. The records of these codes are in the second.
fn topic(codes: &'static [&'static str]) -> MockMessageStream {
    let end = codes.len().try_into().unwrap();
    let mut stream = MockMessageStream::new();
    stream.expect_partitions().returning(|| Ok(vec![0, 1]));
    stream.expect_first_offset().returning(move |partition, from| match from {
        StartFrom::Latest => Ok(if partition == 1 { end } else { 0 }),
        from => {
            // A minute before the oldest row.
            assert_eq!(from, StartFrom::Since(NOW + Duration::from_secs(3_540)));
            Ok(0)
        }
    });
    stream.expect_fetch().returning(move |partition, offset| {
        assert_eq!(partition, 1);
        let record = |code: &str| {
            let id = MessageId::of_record("message", 1, 0, 0);
            let phone = "79990000001".parse().unwrap();
            let message = Message { id, phone, code: code.parse().unwrap() };
            Incoming { message, validity: None, trace: None, sequence: None }
        };
        let content = match codes[usize::try_from(offset).unwrap()] {
            "" => Err(Unreadable("not JSON")),
            code => Ok(record(code)),
        };
        let records = vec![Record { offset, content }];
        Ok(Fetched { records, next_offset: offset + 1, lag: end - offset - 1 })
    });
    stream
}

#[tokio::test]
async fn claimed_row_whose_message_is_in_the_topic_is_done_and_not_taken() {
    let rows = vec![row(7, "111111"), row(8, "222222"), invalid(9)];
    let mut table = table(true, rows.clone());
    takes(&mut table, &[7]);
    table
        .expect_mark_done()
        .withf(|rows| rows.len() == 1 && rows[0].id == 8)
        .once()
        .returning(|_| Ok(1));
    let claimed = TakeOverClaimed::new(table, topic(&["", "333333", "222222"]), vault(), rng());

    let taken = claimed.execute(ALL, &rows).await.unwrap();

    assert_eq!((taken.taken, taken.published), (1, 1));
}

#[tokio::test]
async fn record_in_the_topic_is_of_one_row_only() {
    let rows = vec![row(7, "111111"), row(8, "111111")];
    let mut table = table(true, rows.clone());
    takes(&mut table, &[8]);
    table
        .expect_mark_done()
        .withf(|rows| rows.len() == 1 && rows[0].id == 7)
        .once()
        .returning(|_| Ok(1));
    let claimed = TakeOverClaimed::new(table, topic(&["111111"]), vault(), rng());

    let taken = claimed.execute(ALL, &rows).await.unwrap();

    assert_eq!((taken.taken, taken.published), (1, 1));
}

#[tokio::test]
async fn nothing_is_taken_while_the_go_processor_still_claims() {
    let claimed = [row(7, "111111"), row(8, "222222")];
    let earlier = [claimed[0].clone(), GoRow { reserved_to: 6, ..row(8, "222222") }];

    for before in [&claimed[..1], &earlier[..]] {
        let table = table(true, claimed.to_vec());
        let take = TakeOverClaimed::new(table, MockMessageStream::new(), vault(), rng());

        let refused = take.execute(ALL, before).await;

        assert!(matches!(refused, Err(TakeOverError::StillWorking)), "{refused:?}");
    }
}

#[tokio::test]
async fn claimed_rows_are_left_if_the_topic_does_not_exist() {
    let rows = vec![row(7, "111111")];
    let mut stream = MockMessageStream::new();
    stream.expect_partitions().returning(|| Ok(vec![]));
    let take = TakeOverClaimed::new(table(true, rows.clone()), stream, vault(), rng());

    let refused = take.execute(ALL, &rows).await;

    assert!(matches!(refused, Err(TakeOverError::NoTopic)), "{refused:?}");
}

#[tokio::test]
async fn only_messages_of_rows_that_were_never_published_are_given_back() {
    let mut table = MockGoTable::new();
    table.expect_unpublished().withf(|after, _| *after == 0).once().returning(|_, _| {
        let stored = |sequence, id| Stored { sequence, id };
        Ok(Some(vec![
            stored(40, MessageId::of_go_row(7, 7)),
            // A message that Messager accepted itself.
            stored(41, MessageId::of_record("other", 0, 0, 0)),
            stored(42, MessageId::of_go_row(9, 9)),
        ]))
    });
    // The message of row 8 was published.
    table
        .expect_done()
        .returning(|_| Ok([7, 8, 9].map(|row| (row, MessageId::of_go_row(row, row))).to_vec()));
    table
        .expect_give_back()
        .withf(|rows| {
            rows == [GivingBack { row: 7, sequence: 40 }, GivingBack { row: 9, sequence: 42 }]
        })
        .once()
        .returning(|_| Ok(Some(2)));

    assert_eq!(GiveBack::new(table).execute(ALL).await.unwrap(), 2);
}

#[tokio::test]
async fn nothing_is_given_back_while_there_is_a_relay() {
    let mut table = MockGoTable::new();
    table.expect_unpublished().returning(|_, _| Ok(None));
    table.expect_give_back().never();

    let refused = GiveBack::new(table).execute(ALL).await;

    assert!(matches!(refused, Err(GiveBackError::Relayed)), "{refused:?}");
}
