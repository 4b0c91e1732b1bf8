//! Runs the real use cases on ports in memory through any sequence of faults. Then the faults stop, and
//! after some time every accepted message must have ended correctly.
//!
//! This is one file, because the faults, the run and the checks describe one experiment.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use application::{
    AfterAmbiguous, DeliverMessages, DeliverSettings, GatewayLimits, Guard, Keys, Preference,
    ReceiptUrls, RelayBatch, RelaySettings, Route, RoutedGateway, Router, RoutingTable, SendRules,
    SharePartitions, ShareSettings, Submission, SubmitMessage, SubmitSettings, TracedMessages,
    Vault,
    ports::{
        Backlog, DeliveryState, Fetched, Lease, LedgerError, MessageStream, PartitionLeases,
        StreamError,
    },
};
use domain::{GatewayName, MessageId, PhoneNumber, Recipient, Templates};
use proptest::{prelude::*, sample::select};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};

use crate::memory::{
    Answer, Called, Member, Memory, PARTITIONS, Pace, Provider, Publication, Statement,
};

const PHONES: u8 = 3;
const RELAYS: usize = 2;
const CONSUMERS: usize = 2;
const TTL: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(5);
const CALL_LIMIT: Duration = Duration::from_secs(12);
const GATEWAYS: [&str; 2] = ["main", "local"];

/// The gateways of a test: whether each recognises a repeated message, and where an ambiguous message
/// goes.
#[derive(Debug, Clone, Copy)]
struct Case {
    deduplicates: &'static [bool],
    after_ambiguous: AfterAmbiguous,
}

const CASES: [Case; 5] = {
    const fn case(deduplicates: &'static [bool], after_ambiguous: AfterAmbiguous) -> Case {
        Case { deduplicates, after_ambiguous }
    }
    [
        case(&[true], AfterAmbiguous::Same),
        case(&[false], AfterAmbiguous::Same),
        case(&[true, false], AfterAmbiguous::Same),
        case(&[true, true], AfterAmbiguous::Next),
        case(&[false, false], AfterAmbiguous::Next),
    ]
};

impl Case {
    fn gateways(self) -> impl Iterator<Item = (GatewayName, bool)> {
        let names = GATEWAYS.map(|name| name.parse().expect("it is a name"));
        names.into_iter().zip(self.deduplicates.iter().copied())
    }

    fn router(self, memory: &Memory) -> Router<Provider> {
        let all: Vec<GatewayName> = self.gateways().map(|(name, _)| name).collect();
        let gateway = |(name, deduplicates): (GatewayName, bool)| {
            let memory = memory.clone();
            let provider = Provider { memory, name: name.clone(), deduplicates };
            let limits = GatewayLimits::none(CALL_LIMIT);
            RoutedGateway { name, gateway: Arc::new(provider), limits }
        };
        let table = RoutingTable {
            gateways: self.gateways().map(gateway).collect(),
            routes: vec![Route { gateways: Preference::InOrder(all), ..Route::default() }],
            after_ambiguous: self.after_ambiguous,
            receipts: None,
        };
        Router::new(table, Arc::new(|_| None))
    }
}

#[derive(Debug, Clone)]
enum Step {
    Accept(u8),
    /// Accepts a message to another phone, whose number becomes visible after this time.
    AcceptSlowly(Duration),
    Relay(usize),
    Sweep,
    TimePasses(Duration),
    NextPublications(Vec<Publication>),
    /// What the gateway with this number does next.
    NextAnswers(usize, Vec<Answer>),
    LoseAnswers(Statement, u32),
    EndTenure,
    EndLease(i32),
    WipeTopic,
    CrashRelay(usize),
    CrashConsumer(usize),
    Pause(usize, Pace),
    GoOn(usize),
}

/// The state on which the next step depends: which consumers are paused.
#[derive(Debug)]
struct Steps;

impl ReferenceStateMachine for Steps {
    type State = [bool; CONSUMERS];
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self::State> {
        Just([false; CONSUMERS]).boxed()
    }

    fn transitions(_: &Self::State) -> BoxedStrategy<Step> {
        let milliseconds = select(vec![5, 25, 100, 500, 2_000, 6_000, 20_000]);
        let publications = select(vec![
            Publication::Slow,
            Publication::ArrivesUnheard,
            Publication::DoesNotArrive,
        ]);
        let answers = select(vec![
            Answer::Slow,
            Answer::Rejected,
            Answer::Unroutable,
            Answer::Misconfigured,
            Answer::Throttled,
            Answer::Unavailable,
            Answer::AcceptedUnheard,
            Answer::NotAcceptedUnheard,
            Answer::Hangs,
        ]);
        let statements = select(vec![
            Statement::Any,
            Statement::Renew,
            Statement::Admit,
            Statement::Start,
            Statement::Finish,
        ]);
        let stops = select(vec![
            Pace::StopsBefore,
            Pace::StopsAfter(Statement::Any),
            Pace::StopsAfter(Statement::Admit),
            Pace::StopsAfter(Statement::Start),
            Pace::StopsAfter(Statement::Finish),
        ]);
        prop_oneof![
            6 => (0..PHONES).prop_map(Step::Accept),
            2 => select(vec![10, 300, 3_000, 9_000])
                .prop_map(|time| Step::AcceptSlowly(Duration::from_millis(time))),
            6 => (0..RELAYS).prop_map(Step::Relay),
            8 => milliseconds.prop_map(|time| Step::TimePasses(Duration::from_millis(time))),
            2 => prop::collection::vec(publications, 1..3).prop_map(Step::NextPublications),
            4 => (0..GATEWAYS.len(), prop::collection::vec(answers, 1..4))
                .prop_map(|(gateway, next)| Step::NextAnswers(gateway, next)),
            3 => (statements, 1_u32..4).prop_map(|(which, times)| Step::LoseAnswers(which, times)),
            1 => Just(Step::Sweep),
            1 => Just(Step::EndTenure),
            1 => (0..PARTITIONS).prop_map(Step::EndLease),
            1 => Just(Step::WipeTopic),
            1 => (0..RELAYS).prop_map(Step::CrashRelay),
            1 => (0..CONSUMERS).prop_map(Step::CrashConsumer),
            2 => (0..CONSUMERS, stops).prop_map(|(consumer, pace)| Step::Pause(consumer, pace)),
            2 => (0..CONSUMERS).prop_map(Step::GoOn),
        ]
        .boxed()
    }

    fn preconditions(paused: &Self::State, step: &Step) -> bool {
        match step {
            Step::Pause(consumer, _) => !paused[*consumer],
            Step::GoOn(consumer) => paused[*consumer],
            _ => true,
        }
    }

    fn apply(mut paused: Self::State, step: &Step) -> Self::State {
        match step {
            Step::Pause(consumer, _) => paused[*consumer] = true,
            Step::GoOn(consumer) | Step::CrashConsumer(consumer) => paused[*consumer] = false,
            _ => {}
        }
        paused
    }
}

struct Pipeline {
    runtime: Runtime,
    case: Case,
    memory: Memory,
    submit: Arc<SubmitMessage<Memory, StdRng>>,
    slow: JoinSet<Option<MessageId>>,
    slow_phones: u8,
    relays: [Option<Relaying>; RELAYS],
    consumers: [Running; CONSUMERS],
    names: u32,
    accepted: Vec<MessageId>,
    /// A process failed, or did not learn the result of a commit.
    disturbed: bool,
    wiped: bool,
}

/// The process of a relay. Dropping it is a crash.
struct Relaying {
    _task: JoinSet<()>,
    rounds: mpsc::Sender<()>,
}

/// The process of a consumer. Dropping it is a crash.
struct Running {
    _tasks: JoinSet<()>,
    pace: watch::Sender<Pace>,
}

/// A vault with a payload key: codes are sealed.
fn vault() -> Vault {
    const PEPPER: &str = "p1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const PAYLOAD_KEY: &str = "k1:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";
    Vault::of(Keys {
        peppers: Some(PEPPER.parse().expect("it is a pepper")),
        payload: Some(PAYLOAD_KEY.parse().expect("it is a key")),
    })
}

fn phone(number: u8) -> PhoneNumber {
    format!("79990000{number:03}").parse().expect("it has eleven digits")
}

fn submission(number: u8) -> Submission {
    let written = phone(number);
    let to = Recipient::Unreadable(written.clone());
    Submission { to, written, api_key: None, trace: None }
}

/// Does a round on request.
async fn relay(memory: Memory, mut rounds: mpsc::Receiver<()>) {
    let settings = RelaySettings {
        batch: NonZeroU32::new(3).expect("it is not zero"),
        lease: Duration::from_secs(3),
        confirm_within: Duration::from_secs(10),
    };
    let mut relay = RelayBatch::new(memory.clone(), memory, settings);
    while rounds.recv().await.is_some() {
        let _ = relay.execute().await;
    }
}

/// Shares partitions and runs its rounds by itself, as `bootstrap` does.
async fn consume(member: Member, router: Router<Provider>) {
    let share = SharePartitions::new(member.clone(), ShareSettings { ttl: LEASE });
    let known: Vec<i32> = (0..PARTITIONS).collect();
    let mut held: HashMap<i32, (Lease, Seen, watch::Sender<bool>)> = HashMap::new();
    let mut workers = JoinSet::new();
    loop {
        held.retain(|_, (_, _, stop)| !stop.is_closed());
        let lease = |(lease, seen, _): &(Lease, Seen, _)| Lease {
            seen: *seen.lock().expect("no reader panics"),
            ..lease.clone()
        };
        let leases: Vec<Lease> = held.values().map(lease).collect();
        if let Ok(shared) = share.execute(&leases, &known, false).await {
            for partition in shared.dropped {
                if let Some((_, _, stop)) = held.remove(&partition) {
                    stop.send_replace(true);
                }
            }
            for lease in shared.taken {
                let (stop, stopped) = watch::channel(false);
                let seen = Seen::default();
                let (member, router) = (member.clone(), router.clone());
                workers.spawn(work(member, router, lease.clone(), Arc::clone(&seen), stopped));
                held.insert(lease.partition, (lease, seen, stop));
            }
        }
        sleep(Duration::from_millis(500)).await;
    }
}

async fn work(
    member: Member,
    router: Router<Provider>,
    lease: Lease,
    seen: Seen,
    mut stopped: watch::Receiver<bool>,
) {
    let (fetched, inbox) = mpsc::channel(1);
    let offset = lease.next_offset.unwrap_or(0);
    let mut reader = JoinSet::new();
    reader.spawn(read(member.clone(), lease.partition, offset, seen, fetched));
    let settings = DeliverSettings {
        templates: Arc::new(Templates::new("Your code: {code}".parse().expect("it is one"))),
        vault: vault(),
        traced: TracedMessages::default(),
        receipt_urls: ReceiptUrls::default(),
        default_ttl: TTL,
        beat: tokio::time::Instant::now(),
        concurrency: 2,
        in_hand: 6,
    };
    let rng = StdRng::seed_from_u64(lease.epoch.cast_unsigned());
    let ledger = Arc::new(member.clone());
    let mut deliver = DeliverMessages::new(ledger, router, rng, settings, lease.clone(), inbox);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            () = deliver.wait() => {}
        }
        match deliver.act().await {
            Ok(_) => {}
            Err(LedgerError::Fenced { .. }) => break,
            Err(LedgerError::Unavailable(_)) => sleep(Duration::from_millis(500)).await,
        }
    }
    drop((reader, stopped));
    let _ = member.release(&lease).await;
    while deliver.in_flight() > 0 {
        if deliver.drain().await.is_err() {
            sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn read(
    stream: Member,
    partition: i32,
    mut offset: i64,
    seen: Seen,
    fetched: mpsc::Sender<Fetched>,
) {
    let mut goal: Option<(i64, Instant)> = None;
    loop {
        let asked = Instant::now();
        match stream.fetch(partition, offset).await {
            Ok(batch) => {
                let end_now = batch.next_offset + batch.lag;
                let (end, at) = *goal.get_or_insert((end_now, asked));
                let end = end.min(end_now);
                if batch.next_offset != offset {
                    offset = batch.next_offset;
                    if fetched.send(batch).await.is_err() {
                        return;
                    }
                }
                if offset >= end && fetched.capacity() == fetched.max_capacity() {
                    *seen.lock().expect("no reader panics") = Some(at);
                    goal = None;
                }
            }
            Err(StreamError::OutOfRange { .. }) => (offset, goal) = (0, None),
            Err(StreamError::Unavailable(_)) => unreachable!("the topic is always there"),
        }
    }
}

impl Pipeline {
    fn new(case: Case) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let entered = runtime.enter();
        let memory = Memory::new();
        let settings = SubmitSettings {
            code_length: 6.try_into().expect("six will do"),
            code_ttl: TTL,
            rules: SendRules::NONE,
        };
        let rng = StdRng::seed_from_u64(1);
        let guard = Arc::new(Guard::new(Vec::new(), TTL));
        let submit = Arc::new(SubmitMessage::new(
            memory.clone(),
            || SystemTime::UNIX_EPOCH,
            rng,
            vault(),
            guard,
            settings,
        ));
        let consumers = [0, 1].map(|name| run(&memory, case, name));
        drop(entered);
        Self {
            runtime,
            case,
            memory,
            submit,
            slow: JoinSet::new(),
            slow_phones: PHONES,
            relays: [None, None],
            consumers,
            names: 2,
            accepted: Vec::new(),
            disturbed: false,
            wiped: false,
        }
    }

    fn step(&mut self, step: Step) {
        let runtime = self.runtime.handle().clone();
        let _clock = runtime.enter();
        match step {
            Step::Accept(number) => {
                let accept = self.submit.execute(submission(number));
                self.accepted.extend(self.runtime.block_on(accept));
            }
            Step::AcceptSlowly(time) => {
                self.memory.state().slow.push_back(time);
                let (submit, submission) = (Arc::clone(&self.submit), submission(self.slow_phones));
                self.slow_phones += 1;
                let accept = async move { submit.execute(submission).await.ok() };
                self.slow.spawn_on(accept, &runtime);
            }
            Step::Relay(relay) => self.relay(relay),
            Step::Sweep => drop(self.runtime.block_on(self.memory.end_expired())),
            Step::TimePasses(time) => self.runtime.block_on(sleep(time)),
            Step::NextPublications(next) => self.memory.state().publications.extend(next),
            Step::NextAnswers(gateway, next) => {
                let name = GATEWAYS[gateway].parse().expect("it is a name");
                self.memory.state().answers.entry(name).or_default().extend(next);
            }
            Step::LoseAnswers(statement, times) => {
                self.disturbed = true;
                self.memory.state().unheard = (statement, times);
            }
            Step::EndTenure => self.memory.end_tenure(),
            Step::EndLease(partition) => self.memory.end_lease(partition),
            Step::WipeTopic => {
                self.wiped = true;
                self.memory.wipe_topic();
            }
            Step::CrashRelay(relay) => self.relays[relay] = None,
            Step::CrashConsumer(consumer) => {
                self.disturbed = true;
                self.consumers[consumer] = run(&self.memory, self.case, self.names);
                self.names += 1;
            }
            Step::Pause(consumer, pace) => {
                self.disturbed = true;
                self.consumers[consumer].pace.send_replace(pace);
            }
            Step::GoOn(consumer) => {
                self.consumers[consumer].pace.send_replace(Pace::Goes);
            }
        }
        // Tasks that can proceed without the clock do so.
        self.runtime.block_on(async {
            for _ in 0..20 {
                yield_now().await;
            }
        });
    }

    fn relay(&mut self, relay: usize) {
        let running = self.relays[relay].get_or_insert_with(|| {
            let (rounds, told) = mpsc::channel(1);
            let mut task = JoinSet::new();
            task.spawn_on(self::relay(self.memory.clone(), told), self.runtime.handle());
            Relaying { _task: task, rounds }
        });
        // A relay in the middle of a round does one more after it, not two.
        let _ = running.rounds.try_send(());
    }

    /// Stops all faults; relays and sweep do their rounds. Returns the messages with enough time left to
    /// reach a consumer.
    fn heal(&mut self) -> Vec<MessageId> {
        const AMPLE: Duration = Duration::from_secs(45);
        let runtime = self.runtime.handle().clone();
        let _clock = runtime.enter();
        for consumer in &self.consumers {
            consumer.pace.send_replace(Pace::Goes);
        }
        while let Some(accepted) = self.runtime.block_on(self.slow.join_next()) {
            self.accepted.extend(accepted.expect("no request panics"));
        }
        let mut state = self.memory.state();
        state.unheard = (Statement::Any, 0);
        state.publications.clear();
        state.answers.clear();
        let late = self.memory.time() + AMPLE;
        let young = state.stored.iter().filter(|(_, validity)| validity.expires_at > late);
        let young = young.map(|(id, _)| *id).collect();
        drop(state);
        for _ in 0..2 * TTL.as_secs() {
            for relay in 0..RELAYS {
                self.relay(relay);
            }
            let round = async {
                sleep(Duration::from_secs(1)).await;
                self.memory.end_expired().await
            };
            self.runtime.block_on(round).expect("it is healed");
            if self.memory.is_quiet() {
                return young;
            }
        }
        panic!("some message has not ended: {:#?}", self.memory);
    }

    fn check(&self, young: &[MessageId]) {
        let state = self.memory.state();
        assert!(
            !young.iter().any(|id| state.expired.contains(id)),
            "no consumer took it over in time"
        );
        let valid: HashMap<MessageId, _> = state.stored.iter().copied().collect();
        let place: HashMap<MessageId, usize> =
            state.stored.iter().enumerate().map(|(place, (id, _))| (*id, place)).collect();
        let mut latest: HashMap<&str, usize> = HashMap::new();
        for call in &state.calls {
            let place = *place.get(&call.id).expect("every call is for an accepted message");
            assert!(call.at < valid[&call.id].expires_at, "called after its code had expired");
            let latest = latest.entry(call.phone.as_str()).or_default();
            // A message that was lost and published again has no place in the order.
            assert!(self.wiped || *latest <= place, "{:?} is called out of order", call.phone);
            *latest = place;
        }
        let mut ends: HashMap<MessageId, DeliveryState> = HashMap::new();
        for (id, end) in &state.ended {
            assert_eq!(ends.insert(*id, *end), None, "it ended twice");
        }
        assert!(!state.expired.iter().any(|id| ends.contains_key(id)), "it ended twice");
        for (id, _) in &state.stored {
            let calls = || state.calls.iter().filter(|call| call.id == *id);
            let paid = calls().filter(|call| call.accepted).count();
            let ambiguous = calls().any(|call| call.ambiguous);
            self.check_payments(&state.calls, *id, ambiguous);
            match ends.get(id) {
                Some(DeliveryState::Sent) => {
                    assert!(paid >= 1, "sent, but the gateway has not accepted it");
                }
                Some(DeliveryState::Failed) => assert_eq!(paid, 0, "failed, and was sent"),
                Some(DeliveryState::Expired) => {
                    assert!(paid == 0 || ambiguous || self.disturbed, "expired, and was sent");
                }
                Some(DeliveryState::Unknown) => {
                    assert!(ambiguous || self.disturbed, "unknown without a cause");
                    // With two gateways, the other may have refused it.
                    assert_ne!(
                        self.case.deduplicates,
                        [true],
                        "unknown, although a retry was safe"
                    );
                }
                Some(end) => unreachable!("{end:?} is no end"),
                None => assert!(state.expired.contains(id), "forgotten"),
            }
        }
        assert!(self.accepted.iter().all(|id| valid.contains_key(id)));
    }

    /// Checks how often each gateway accepted a message.
    fn check_payments(&self, calls: &[Called], id: MessageId, ambiguous: bool) {
        let mut accepted = 0;
        for (name, deduplicates) in self.case.gateways() {
            let calls = calls.iter().filter(|call| call.id == id && call.gateway == name);
            let paid = calls.filter(|call| call.accepted).count();
            assert!(paid <= 1 || deduplicates, "{name} was paid {paid} times");
            accepted += usize::from(paid > 0);
        }
        let may_go_on = self.case.after_ambiguous == AfterAmbiguous::Next;
        let has_cause = ambiguous || self.disturbed;
        assert!(accepted <= 1 || may_go_on && has_cause, "taken by {accepted} gateways");
    }
}

/// The moment up to which a reader has read its partition completely.
type Seen = Arc<Mutex<Option<Instant>>>;

fn run(memory: &Memory, case: Case, name: u32) -> Running {
    let (pace, receiver) = watch::channel(Pace::Goes);
    let mut tasks = JoinSet::new();
    let router = case.router(memory);
    tasks.spawn(consume(Member::new(memory.clone(), name, receiver), router));
    Running { _tasks: tasks, pace }
}

#[derive(Debug)]
struct Faults<const CASE: usize>;

impl<const CASE: usize> StateMachineTest for Faults<CASE> {
    type SystemUnderTest = Pipeline;
    type Reference = Steps;

    fn init_test(_: &[bool; CONSUMERS]) -> Pipeline {
        Pipeline::new(CASES[CASE])
    }

    fn apply(mut pipeline: Pipeline, _: &[bool; CONSUMERS], step: Step) -> Pipeline {
        pipeline.step(step);
        pipeline
    }

    fn teardown(mut pipeline: Pipeline, _: [bool; CONSUMERS]) {
        let young = pipeline.heal();
        pipeline.check(&young);
    }
}

prop_state_machine! {
    #[test]
    fn every_message_ends_as_it_should_where_the_gateway_deduplicates(
        sequential 1..60 => Faults<0>
    );

    #[test]
    fn every_message_ends_as_it_should_where_the_gateway_does_not(
        sequential 1..60 => Faults<1>
    );

    #[test]
    fn two_gateways_never_take_one_message_if_an_ambiguous_one_must_stay(
        sequential 1..60 => Faults<2>
    );

    #[test]
    fn every_message_ends_as_it_should_where_an_ambiguous_one_goes_on(
        sequential 1..60 => Faults<3>
    );

    #[test]
    fn no_gateway_takes_a_message_twice_where_an_ambiguous_one_goes_on(
        sequential 1..60 => Faults<4>
    );
}
