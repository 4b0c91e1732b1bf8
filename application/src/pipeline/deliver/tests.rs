//! The delivery use case on a paused clock.
//!
//! This is one file, because all tests drive the same mocked ledger and gateway. `failover` has several
//! gateways and a ledger that remembers.

mod failover;
mod traces;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use domain::{Message, PhoneNumber};
use rand::{SeedableRng, rngs::StdRng};
use tokio::time::{advance, timeout};

use super::*;
use crate::ports::{
    Accepted, Admitted, CallOutcome, MockDeliveryLedger, MockSmsGateway, Next, Past, Record,
    SendError, Sms, Start, Started, Unreadable, Verdict,
};

const TTL: Duration = Duration::from_secs(600);

fn message(number: i64) -> Message {
    Message {
        id: MessageId::of_record("t", 0, number, 0),
        phone: format!("7999{number:07}").parse().unwrap(),
        code: "123456".parse().unwrap(),
    }
}

fn record(number: i64) -> Record {
    let incoming =
        Incoming { message: message(number), validity: None, trace: None, sequence: None };
    Record { offset: number, content: Ok(incoming) }
}

fn fetched(records: Vec<Record>) -> Fetched {
    let next_offset = records.last().map_or(0, |record| record.offset + 1);
    Fetched { records, next_offset, lag: 0 }
}

/// A ledger without earlier entries that admits every message.
fn ledger() -> MockDeliveryLedger {
    let mut ledger = MockDeliveryLedger::new();
    ledger.expect_open().returning(|_| Ok(Vec::new()));
    ledger
        .expect_admit()
        .returning(|_, batch| Ok(admitted(batch.messages().map(|it| it.message.id).collect())));
    ledger
}

fn admitted(fresh: Vec<MessageId>) -> Admitted {
    Admitted { fresh, ..Admitted::default() }
}

fn starts(ledger: &mut MockDeliveryLedger) {
    ledger.expect_start().returning(|_, starts, _| Ok(started_of(starts)));
}

/// Grants the calls of `starts`.
fn started_of(starts: &[Start]) -> Started {
    let is_call = |start: &&Start| matches!(start.next, Next::Call(_));
    let calls: Vec<_> = starts.iter().filter(is_call).map(|start| start.id).collect();
    started(&calls)
}

fn started(ids: &[MessageId]) -> Started {
    let call = |id: &MessageId| Call {
        id: *id,
        attempt: 1,
        expires_at: SystemTime::UNIX_EPOCH + TTL,
        good_for: TTL,
    };
    Started { calls: ids.iter().map(call).collect(), ..Started::default() }
}

fn recorded(outcome: &CallOutcome) -> Recorded {
    let state = match outcome.verdict {
        Verdict::Sent { .. } => DeliveryState::Sent,
        Verdict::Failed => DeliveryState::Failed,
        Verdict::Unknown => DeliveryState::Unknown,
        Verdict::Retry { .. } => DeliveryState::Pending,
    };
    Recorded { id: outcome.id, state, age: Duration::ZERO }
}

/// The past of a message with one call, which may have reached the gateway.
fn called_once() -> Past {
    let tried = vec![GatewayName::default()];
    Past { attempts: 1, ambiguous: tried.clone(), tried, ..Past::default() }
}

/// Records the outcomes that are finished.
fn finishes(ledger: &mut MockDeliveryLedger) -> Arc<Mutex<Vec<CallOutcome>>> {
    let book = Arc::new(Mutex::new(Vec::new()));
    let entries = Arc::clone(&book);
    ledger.expect_finish().returning(move |outcomes| {
        entries.lock().unwrap().extend_from_slice(outcomes);
        Ok(outcomes.iter().map(recorded).collect())
    });
    book
}

fn gateway_that(answer: Result<Accepted, SendError>, deduplicates: bool) -> MockSmsGateway {
    let mut gateway = MockSmsGateway::new();
    gateway.expect_deduplicates().return_const(deduplicates);
    gateway.expect_send().returning(move |_| answer.clone());
    gateway
}

type Deliver<G> = DeliverMessages<MockDeliveryLedger, G, StdRng>;

fn deliver<G: SmsGateway>(
    ledger: MockDeliveryLedger,
    gateway: G,
    batches: Vec<Fetched>,
) -> (Deliver<G>, mpsc::Sender<Fetched>) {
    let (sender, inbox) = mpsc::channel(8);
    for batch in batches {
        sender.try_send(batch).unwrap();
    }
    let settings = DeliverSettings {
        templates: Arc::new(Templates::new("Your code: {code}".parse().unwrap())),
        vault: Vault::default(),
        traced: TracedMessages::default(),
        receipt_urls: ReceiptUrls::default(),
        default_ttl: TTL,
        beat: Instant::now(),
        concurrency: 3,
        in_hand: 100,
    };
    let lease = Lease {
        partition: 0,
        epoch: 1,
        next_offset: Some(0),
        added_later: false,
        first_at: None,
        seen: None,
    };
    let rng = StdRng::seed_from_u64(1);
    let router = Router::single(gateway, Duration::from_secs(12));
    let deliver = DeliverMessages::new(Arc::new(ledger), router, rng, settings, lease, inbox);
    // The sender keeps the inbox open.
    (deliver, sender)
}

/// Runs rounds until `calls` outcomes are recorded.
async fn run<G: SmsGateway + Send>(deliver: &mut Deliver<G>, calls: usize) -> Delivered {
    let mut all = Delivered::default();
    while all.ended.len() + all.retries < calls {
        deliver.wait().await;
        let delivered = deliver.act().await.unwrap();
        all.admitted += delivered.admitted;
        all.passed_over += delivered.passed_over;
        all.unreadable += delivered.unreadable;
        all.calls += delivered.calls;
        all.retries += delivered.retries;
        all.ended.extend(delivered.ended);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn messages_without_room_after_many_calls_are_taken_over_in_the_next_round() {
    for (room, offsets) in [(40, vec![40, 80, 100]), (MANY_CALLS - 1, vec![100])] {
        let mut ledger = MockDeliveryLedger::new();
        ledger.expect_open().returning(|_| Ok(Vec::new()));
        starts(&mut ledger);
        finishes(&mut ledger);
        let next_offsets = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&next_offsets);
        ledger.expect_admit().returning(move |_, batch| {
            seen.lock().unwrap().push(batch.next_offset);
            let ids = batch.messages().map(|it| it.message.id);
            let (now, later): (Vec<_>, Vec<_>) =
                ids.partition(|id| batch.call_now.contains_key(id));
            Ok(Admitted { calls: started(&now).calls, ..admitted(later) })
        });
        let gateway = gateway_that(Ok(Accepted::default()), true);
        let records = (0..100).map(record).collect();
        let (mut deliver, _inbox) = deliver(ledger, gateway, vec![fetched(records)]);
        deliver.load = PartitionLoad::new(room);

        let delivered = run(&mut deliver, 100).await;

        assert_eq!((delivered.admitted, delivered.calls), (100, 100));
        assert_eq!(*next_offsets.lock().unwrap(), offsets);
    }
}

#[tokio::test(start_paused = true)]
async fn a_round_follows_soon_after_a_message_and_later_after_an_outcome() {
    let behind = |number| {
        let mut behind = record(number + 10);
        let incoming = behind.content.as_mut().unwrap();
        incoming.message.phone = message(number).phone;
        behind
    };
    for (first, second, pause) in [
        (vec![record(1)], None, ROUND + OUTCOME),
        (vec![record(1)], Some(record(2)), ROUND),
        (vec![record(1), record(2)], None, ROUND + FURTHER + OUTCOME),
        // The message in memory waits for the outcome.
        (vec![record(1), behind(1)], None, ROUND + FURTHER),
        ((1..=9).map(record).collect(), None, LONGEST_ROUND + OUTCOME),
    ] {
        let mut ledger = ledger();
        starts(&mut ledger);
        let gateway = gateway_that(Ok(Accepted::default()), true);
        let (mut deliver, inbox) = deliver(ledger, gateway, vec![fetched(first)]);
        deliver.load = PartitionLoad::new(10);
        deliver.wait().await;
        let begun = Instant::now();
        deliver.act().await.unwrap();

        if let Some(record) = second {
            inbox.try_send(fetched(vec![record])).unwrap();
        }
        deliver.wait().await;

        assert_eq!(begun.elapsed(), pause);
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_partition_begins_its_next_round_at_the_beat() {
    let mut ledger = ledger();
    starts(&mut ledger);
    let gateway = gateway_that(Ok(Accepted::default()), true);
    let batch = fetched((1..=9).map(record).collect());
    let (mut deliver, _inbox) = deliver(ledger, gateway, vec![batch]);
    deliver.load = PartitionLoad::new(10);
    let beat = deliver.settings.beat;
    advance(Duration::from_millis(47)).await;
    while deliver.arrived.is_none() {
        deliver.wait().await;
    }
    deliver.act().await.unwrap();

    assert_eq!(deliver.next_round - beat, 3 * LONGEST_ROUND);
}

/// A message behind an expired one is ready, although no call is in progress that would end.
#[tokio::test(start_paused = true)]
async fn a_message_behind_an_expired_one_is_sent_at_once() {
    let mut ledger = ledger();
    ledger.expect_start().returning(|_, starts, _| {
        let [start] = starts else { panic!("{starts:?}") };
        if start.id == message(1).id {
            let state = DeliveryState::Expired;
            let expired = vec![Recorded { id: start.id, state, age: Duration::ZERO }];
            return Ok(Started { ended: expired, ..Started::default() });
        }
        Ok(started_of(starts))
    });
    finishes(&mut ledger);
    let gateway = gateway_that(Ok(Accepted::default()), true);
    let mut behind = record(11);
    behind.content.as_mut().unwrap().message.phone = message(1).phone;
    let batches = vec![fetched(vec![record(1), behind])];
    let (mut deliver, _inbox) = deliver(ledger, gateway, batches);

    let begun = Instant::now();
    let all = run(&mut deliver, 2).await;

    assert_eq!(all.calls, 1);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_ledger_is_read_often_only_while_messages_are_parked() {
    for (open, looks) in [(Vec::new(), 4), (vec![(message(1).phone, 1)], 13)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let mut ledger = MockDeliveryLedger::new();
        ledger.expect_open().returning(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(open.clone())
        });
        ledger.expect_due().returning(|_, _| Ok(Vec::new()));
        let (mut deliver, _inbox) = deliver(ledger, MockSmsGateway::new(), vec![]);

        let work = async {
            loop {
                deliver.wait().await;
                deliver.act().await.unwrap();
            }
        };
        timeout(Duration::from_secs(61), work).await.unwrap_err();

        assert_eq!(asked.load(Ordering::Relaxed), looks);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_admitted_called_for_and_recorded() {
    let mut ledger = ledger();
    starts(&mut ledger);
    let book = finishes(&mut ledger);
    let accepted = Accepted { reference: Some("gw-1".into()), ..Accepted::default() };
    let mut gateway = MockSmsGateway::new();
    gateway
        .expect_send()
        .withf(|sms| sms.message == message(1) && sms.text == "Your code: 123456")
        .once()
        .returning(move |_| Ok(accepted.clone()));
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record(1)])]);

    let delivered = run(&mut deliver, 1).await;

    assert_eq!((delivered.admitted, delivered.calls), (1, 1));
    assert_eq!(delivered.ended[0].state, DeliveryState::Sent);
    let verdict = book.lock().unwrap()[0].verdict.clone();
    assert_eq!(
        verdict,
        Verdict::Sent {
            reference: Some("gw-1".into()),
            receipts_by_reference: false,
            awaited: None
        }
    );
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_ledger_already_has_is_not_called_for() {
    let mut ledger = MockDeliveryLedger::new();
    ledger.expect_open().returning(|_| Ok(Vec::new()));
    ledger.expect_admit().returning(|_, _| Ok(admitted(vec![message(2).id])));
    starts(&mut ledger);
    finishes(&mut ledger);
    let mut gateway = MockSmsGateway::new();
    gateway
        .expect_send()
        .withf(|sms| sms.message == message(2))
        .once()
        .returning(|_| Ok(Accepted::default()));
    let unreadable = Record { offset: 4, content: Err(Unreadable("not JSON")) };
    let batch = fetched(vec![record(1), record(2), record(2), unreadable]);
    let (mut deliver, _open) = deliver(ledger, gateway, vec![batch]);

    let delivered = run(&mut deliver, 1).await;

    let counts = (delivered.admitted, delivered.passed_over, delivered.unreadable);
    assert_eq!(counts, (1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_undelayed_message_is_called_for_with_its_admission() {
    let mut ledger = MockDeliveryLedger::new();
    ledger.expect_open().returning(|_| Ok(vec![(message(2).phone, 1)]));
    ledger.expect_due().returning(|_, _| Ok(Vec::new()));
    // The phone of the second message has an open entry, the third and fourth are to one phone, and
    // three calls may run at a time.
    let first_of_their_phones = [1, 3, 5].map(|number| message(number).id);
    ledger
        .expect_admit()
        .withf(move |_, batch| {
            let called: HashSet<_> = batch.call_now.keys().copied().collect();
            called == HashSet::from(first_of_their_phones)
        })
        .once()
        .returning(move |_, batch| {
            let (now, fresh) = batch
                .messages()
                .map(|it| it.message.id)
                .partition::<Vec<_>, _>(|id| batch.call_now.contains_key(id));
            Ok(Admitted { calls: started(&now).calls, ..admitted(fresh) })
        });
    starts(&mut ledger);
    let book = finishes(&mut ledger);
    let gateway = gateway_that(Ok(Accepted::default()), true);
    let mut records: Vec<Record> = (1..=6).map(record).collect();
    let Ok(fourth) = &mut records[3].content else { panic!() };
    fourth.message.phone = message(3).phone;
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(records)]);

    let delivered = run(&mut deliver, 5).await;

    assert_eq!((delivered.admitted, delivered.calls), (6, 5));
    let book = book.lock().unwrap();
    let first: HashSet<MessageId> = book[..3].iter().map(|outcome| outcome.id).collect();
    assert_eq!(first, HashSet::from(first_of_their_phones));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_not_started_is_not_called_for() {
    let mut ledger = ledger();
    ledger.expect_start().once().returning(|_, starts, _| {
        let expired = Recorded { id: starts[0].id, state: DeliveryState::Expired, age: TTL };
        Ok(Started { ended: vec![expired], ..Started::default() })
    });
    let mut gateway = MockSmsGateway::new();
    gateway.expect_send().never();
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record(1)])]);

    let delivered = run(&mut deliver, 1).await;

    assert_eq!(delivered.ended[0].state, DeliveryState::Expired);
    assert_eq!(deliver.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_owner_makes_no_call() {
    let mut ledger = MockDeliveryLedger::new();
    ledger.expect_open().returning(|_| Ok(Vec::new()));
    ledger.expect_admit().returning(|_, _| Err(LedgerError::Fenced { partition: 0 }));
    let mut gateway = MockSmsGateway::new();
    gateway.expect_send().never();
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record(1)])]);

    let answer = loop {
        deliver.wait().await;
        let answer = deliver.act().await;
        if answer.is_err() {
            break answer;
        }
    };

    assert!(matches!(answer, Err(LedgerError::Fenced { .. })), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_kept_until_the_ledger_stores_it() {
    let mut ledger = ledger();
    starts(&mut ledger);
    let mut refusals = 2;
    ledger.expect_finish().times(3).returning(move |outcomes| {
        if refusals > 0 {
            refusals -= 1;
            return Err(LedgerError::Unavailable("down".into()));
        }
        Ok(outcomes.iter().map(recorded).collect())
    });
    let mut gateway = MockSmsGateway::new();
    gateway.expect_send().once().returning(|_| Ok(Accepted::default()));
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record(1)])]);

    let mut failures = 0;
    let delivered = loop {
        deliver.wait().await;
        match deliver.act().await {
            Ok(delivered) if !delivered.ended.is_empty() => break delivered,
            Ok(_) => {}
            Err(_) => failures += 1,
        }
    };

    assert_eq!(failures, 2);
    assert_eq!(delivered.ended[0].state, DeliveryState::Sent);
}

#[tokio::test(start_paused = true)]
async fn the_verdict_depends_on_the_answer_of_the_gateway() {
    let later = |retry_after| SendError::Throttled { detail: "429".into(), retry_after };
    let down = SendError::Unavailable { detail: "refused".into(), retry_after: None };
    let minute = Duration::from_secs(60);
    let exactly = Verdict::Retry { after: minute };
    // `None`: a retry after a wait that the service chooses.
    let cases = [
        (SendError::Rejected("404".into()), true, Some(Verdict::Failed)),
        (SendError::Unroutable("21408".into()), true, Some(Verdict::Failed)),
        (SendError::Misconfigured("401".into()), true, None),
        (later(Some(minute)), false, Some(exactly)),
        (later(None), false, None),
        (down, false, None),
        (SendError::Ambiguous("reset".into()), true, None),
        (SendError::Ambiguous("reset".into()), false, Some(Verdict::Unknown)),
    ];
    for (error, deduplicates, expected) in cases {
        let mut ledger = ledger();
        starts(&mut ledger);
        ledger.expect_due().returning(|_, _| Ok(Vec::new()));
        let book = finishes(&mut ledger);
        let gateway = gateway_that(Err(error.clone()), deduplicates);
        let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record(1)])]);

        run(&mut deliver, 1).await;

        let outcome = book.lock().unwrap()[0].clone();
        match expected {
            Some(verdict) => assert_eq!(outcome.verdict, verdict, "{error:?}"),
            None => assert!(
                matches!(outcome.verdict, Verdict::Retry { after } if !after.is_zero() && after < minute),
                "{error:?} became {outcome:?}"
            ),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_call_is_repeated_only_if_the_gateway_deduplicates() {
    for deduplicates in [true, false] {
        let mut ledger = MockDeliveryLedger::new();
        ledger.expect_open().returning(|_| Ok(vec![(message(1).phone, 1)]));
        ledger.expect_due().returning(|_, _| {
            Ok(vec![Due {
                message: message(1),
                trace: None,
                interrupted: true,
                expired: false,
                past: called_once(),
            }])
        });
        starts(&mut ledger);
        let book = finishes(&mut ledger);
        let gateway = gateway_that(Ok(Accepted::default()), deduplicates);
        let (mut deliver, _open) = deliver(ledger, gateway, Vec::new());

        let delivered = run(&mut deliver, 1).await;

        assert_eq!(delivered.calls, usize::from(deduplicates));
        let verdict = book.lock().unwrap()[0].verdict.clone();
        assert_eq!(verdict == Verdict::Unknown, !deduplicates, "{verdict:?}");
    }
}

/// A gateway that never answers, or panics.
struct BadGateway {
    panics: bool,
}

impl SmsGateway for BadGateway {
    async fn send(&self, _: &Sms) -> Result<Accepted, SendError> {
        assert!(!self.panics, "as it was told");
        std::future::pending().await
    }

    fn deduplicates(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_outcome_is_ambiguous() {
    for panics in [true, false] {
        let mut ledger = ledger();
        starts(&mut ledger);
        finishes(&mut ledger);
        let batch = vec![fetched(vec![record(1)])];
        let (mut deliver, _open) = deliver(ledger, BadGateway { panics }, batch);

        let delivered = run(&mut deliver, 1).await;

        assert_eq!(delivered.ended[0].state, DeliveryState::Unknown);
    }
}

#[tokio::test(start_paused = true)]
async fn an_admission_whose_answer_is_lost_keeps_the_order_of_the_phone() {
    let same_phone = |number| {
        let message = Message { phone: message(1).phone, ..message(number) };
        let incoming = Incoming { message, validity: None, trace: None, sequence: None };
        Record { offset: number, content: Ok(incoming) }
    };
    // The first admission is committed and its answer is lost. In the second case it is committed
    // after the next look.
    for seen_by in [2, 3] {
        let mut ledger = MockDeliveryLedger::new();
        let mut admissions = 0;
        ledger.expect_admit().returning(move |_, batch| {
            admissions += 1;
            match admissions {
                1 => Err(LedgerError::Unavailable("reset".into())),
                2 => Ok(Admitted::default()),
                _ => Ok(admitted(batch.messages().map(|it| it.message.id).collect())),
            }
        });
        let mut looks = 0;
        ledger.expect_open().returning(move |_| {
            looks += 1;
            Ok(if looks < seen_by { Vec::new() } else { vec![(message(1).phone, 1)] })
        });
        ledger.expect_due().returning(|_, _| {
            Ok(vec![Due {
                message: message(1),
                trace: None,
                interrupted: false,
                expired: false,
                past: Past::default(),
            }])
        });
        starts(&mut ledger);
        let book = finishes(&mut ledger);
        let gateway = gateway_that(Ok(Accepted::default()), true);
        let batches = vec![fetched(vec![same_phone(1)]), fetched(vec![same_phone(2)])];
        let (mut deliver, _open) = deliver(ledger, gateway, batches);

        while book.lock().unwrap().is_empty() {
            deliver.wait().await;
            // The first failure is the one above.
            let _ = deliver.act().await;
        }

        assert_eq!(book.lock().unwrap()[0].id, message(1).id, "seen by look {seen_by}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_accepts_nothing_gets_few_retries() {
    const PHONES: i64 = 200;
    let down = || SendError::Unavailable { detail: "refused".into(), retry_after: None };
    let wrong = || SendError::Rejected("21211".into());
    // The breaker limits the calls of a gateway that fails, and the budget limits the retries at one
    // that works and accepts nothing.
    for (error, expected) in [(down(), 5..=15), (wrong(), 60..=80)] {
        let mut ledger = MockDeliveryLedger::new();
        ledger
            .expect_open()
            .returning(|_| Ok((0..PHONES).map(|n| (message(n).phone, 1)).collect()));
        // All of them are due again at once, regardless of the back-off.
        ledger.expect_due().returning(|_, _| {
            let due = |n| Due {
                message: message(n),
                trace: None,
                interrupted: false,
                expired: false,
                past: called_once(),
            };
            Ok((0..PHONES).map(due).collect())
        });
        starts(&mut ledger);
        finishes(&mut ledger);
        let gateway = gateway_that(Err(error.clone()), true);
        let (mut deliver, _open) = deliver(ledger, gateway, Vec::new());

        let end = Instant::now() + Duration::from_secs(10);
        let (mut calls, mut held_back) = (0, 0);
        while Instant::now() < end {
            deliver.wait().await;
            let delivered = deliver.act().await.unwrap();
            calls += delivered.calls;
            held_back += delivered.held_back;
        }

        assert!(expected.contains(&calls), "{calls} calls: {error}");
        assert_eq!(held_back > 0, error == wrong());
    }
}

/// Counts concurrent calls.
#[derive(Default)]
struct CountingGateway {
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl SmsGateway for CountingGateway {
    async fn send(&self, _: &Sms) -> Result<Accepted, SendError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(Accepted::default())
    }

    fn deduplicates(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_must_begin_before_the_code_expires_and_may_end_after() {
    // The gateway takes ten milliseconds.
    for (good_for, begun) in [(0, 0), (5, 1)] {
        let mut ledger = ledger();
        ledger.expect_start().returning(move |_, starts, _| {
            let mut started = started_of(starts);
            started.calls[0].good_for = Duration::from_millis(good_for);
            Ok(started)
        });
        ledger.expect_due().returning(|_, _| Ok(Vec::new()));
        let book = finishes(&mut ledger);
        let gateway = CountingGateway::default();
        let most = Arc::clone(&gateway.most);
        let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record(1)])]);

        run(&mut deliver, 1).await;

        assert_eq!(most.load(Ordering::SeqCst), begun, "good for {good_for} ms");
        let is_sent = matches!(book.lock().unwrap()[0].verdict, Verdict::Sent { .. });
        assert_eq!(is_sent, begun == 1);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_run_concurrently_up_to_the_limit() {
    let mut ledger = ledger();
    starts(&mut ledger);
    finishes(&mut ledger);
    let gateway = CountingGateway::default();
    let most = Arc::clone(&gateway.most);
    let batch = fetched((1..=20).map(record).collect());
    let (mut deliver, _open) = deliver(ledger, gateway, vec![batch]);

    let delivered = run(&mut deliver, 20).await;

    assert_eq!(delivered.ended.len(), 20);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_calls_and_starts_none() {
    let mut ledger = ledger();
    starts(&mut ledger);
    finishes(&mut ledger);
    let batch = fetched((1..=20).map(record).collect());
    let (mut deliver, _open) = deliver(ledger, CountingGateway::default(), vec![batch]);
    while deliver.in_flight() == 0 {
        deliver.wait().await;
        deliver.act().await.unwrap();
    }

    let mut ended = 0;
    while deliver.in_flight() > 0 {
        ended += deliver.drain().await.unwrap().ended.len();
    }

    assert_eq!(ended, 3);
}

/// A message whose code is sealed for its id and for `phone`.
fn sealed(number: i64, phone: &PhoneNumber, template: Option<&str>) -> Message {
    let vault = crate::testing::sealing_vault();
    let keys = vault.keys().unwrap().payload.as_ref().unwrap();
    let message = message(number);
    let (code, template) = ("048291".parse().unwrap(), template.map(|it| it.parse().unwrap()));
    let code = keys.seal(message.id, phone, &code, template.as_ref(), [7; 24]);
    Message { code, ..message }
}

fn record_of(message: Message) -> Record {
    Record {
        offset: 1,
        content: Ok(Incoming { message, validity: None, trace: None, sequence: None }),
    }
}

#[tokio::test(start_paused = true)]
async fn a_sealed_code_is_opened_for_the_gateway_only() {
    let mut ledger = ledger();
    starts(&mut ledger);
    finishes(&mut ledger);
    let sent = sealed(1, &message(1).phone, Some("login/de"));
    let expected = sent.clone();
    let mut gateway = MockSmsGateway::new();
    gateway
        .expect_send()
        .withf(move |sms| {
            sms.message == expected
                && sms.code.as_str() == "048291"
                && sms.text == "Anmelden: 048291"
        })
        .once()
        .returning(|_| Ok(Accepted::default()));
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record_of(sent)])]);
    let mut templates = Templates::new("Your code: {code}".parse().unwrap());
    templates.add("login", "de", "Anmelden: {code}").unwrap();
    deliver.settings.templates = Arc::new(templates);
    deliver.settings.vault = crate::testing::sealing_vault();

    let delivered = run(&mut deliver, 1).await;

    assert_eq!(delivered.ended[0].state, DeliveryState::Sent);
}

#[tokio::test(start_paused = true)]
async fn a_reference_that_repeats_the_code_or_the_text_is_not_stored() {
    for (reference, kept) in [
        ("Your code: 123456", false),
        ("Код:123456", false),
        ("123456", false),
        ("#123456.", false),
        ("SM-0123", true),
        ("SM99123456ab", true),
        ("575123456313935471", true),
        ("b3c4-123456-77", false),
        ("79991234567:123456", false),
        ("Your+code+is+123456", false),
        ("b3c4-1234567-7", true),
    ] {
        let mut ledger = ledger();
        starts(&mut ledger);
        let book = finishes(&mut ledger);
        let mut gateway = MockSmsGateway::new();
        gateway.expect_send().returning(move |_| {
            Ok(Accepted { reference: Some(reference.to_owned()), ..Accepted::default() })
        });
        let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record(1)])]);

        run(&mut deliver, 1).await;

        let reference = kept.then(|| reference.to_owned());
        assert_eq!(
            book.lock().unwrap()[0].verdict,
            Verdict::Sent { reference, receipts_by_reference: false, awaited: None }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_that_was_sealed_for_another_message_or_phone_fails_without_a_call() {
    let mut ledger = ledger();
    starts(&mut ledger);
    let book = finishes(&mut ledger);
    let sent = sealed(1, &message(2).phone, None);
    let mut gateway = MockSmsGateway::new();
    gateway.expect_send().never();
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![record_of(sent)])]);
    deliver.settings.vault = crate::testing::sealing_vault();

    let delivered = run(&mut deliver, 1).await;

    assert_eq!(delivered.ended[0].state, DeliveryState::Failed);
    let book = book.lock().unwrap();
    assert_eq!(book[0].class, OutcomeClass::Rejected);
    assert_eq!(book[0].detail, "sealed for another message, or damaged");
}

#[tokio::test(start_paused = true)]
async fn a_sealed_code_waits_for_a_consumer_with_its_key() {
    let mut ledger = ledger();
    starts(&mut ledger);
    let book = finishes(&mut ledger);
    ledger.expect_due().returning(|_, _| Ok(vec![]));
    let mut gateway = MockSmsGateway::new();
    gateway.expect_send().never();
    let sent = record_of(sealed(1, &message(1).phone, None));
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![sent])]);
    deliver.settings.vault = crate::testing::vault();

    let delivered = run(&mut deliver, 1).await;

    assert_eq!((delivered.retries, delivered.ended.len()), (1, 0));
    let book = book.lock().unwrap();
    assert_eq!(book[0].detail, "not called: sealed with a key that is not set here");
}

#[tokio::test(start_paused = true)]
async fn a_sealed_code_waits_until_the_keys_are_loaded() {
    let mut ledger = ledger();
    starts(&mut ledger);
    finishes(&mut ledger);
    ledger.expect_due().returning(|_, _| Ok(vec![]));
    let mut gateway = MockSmsGateway::new();
    gateway.expect_send().never();
    let sent = record_of(sealed(1, &message(1).phone, None));
    let (mut deliver, _open) = deliver(ledger, gateway, vec![fetched(vec![sent])]);

    let delivered = run(&mut deliver, 1).await;

    assert_eq!((delivered.retries, delivered.ended.len()), (1, 0));
}
