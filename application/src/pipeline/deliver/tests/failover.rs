//! Two and three gateways, of which one fails.

use std::collections::HashMap;

use domain::{Budget, Prices};

use super::{super::super::routing::*, *};
use crate::ports::{AwaitedReceipt, Cost, DailyLimit};

/// A ledger that remembers its entries, for one owner of one partition.
#[derive(Debug, Clone, Default)]
struct Book(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    all: Vec<Entry>,
    places: HashMap<MessageId, usize>,
    /// The amount spent for each gateway and scope.
    spent: HashMap<(GatewayName, String), u64>,
    passed_over: HashMap<MessageId, Vec<GatewayName>>,
    /// The receipts that accepted messages need.
    awaited: HashMap<MessageId, Option<AwaitedReceipt>>,
}

impl Entries {
    fn of(&mut self, id: MessageId) -> &mut Entry {
        &mut self.all[self.places[&id]]
    }

    /// Reserves the cost of a call, if its limits have room.
    fn pays(&mut self, gateway: &GatewayName, cost: &Cost) -> bool {
        let key = |limit: &DailyLimit| (gateway.clone(), limit.scope.clone());
        let spent = |limit: &DailyLimit| self.spent.get(&key(limit)).copied().unwrap_or(0);
        if cost.limits.iter().any(|limit| spent(limit) + cost.amount > limit.limit) {
            return false;
        }
        for limit in &cost.limits {
            *self.spent.entry(key(limit)).or_default() += cost.amount;
        }
        true
    }

    fn open(&self) -> impl Iterator<Item = &Entry> {
        self.all.iter().filter(|entry| entry.is_open())
    }
}

#[derive(Debug)]
struct Entry {
    message: Message,
    state: DeliveryState,
    past: Past,
    due_at: Instant,
}

impl Entry {
    fn is_open(&self) -> bool {
        matches!(self.state, DeliveryState::Pending | DeliveryState::Calling)
    }

    fn call(&mut self, gateway: &GatewayName) -> Call {
        self.state = DeliveryState::Calling;
        self.past.attempts += 1;
        self.past.tried.push(gateway.clone());
        let expires_at = SystemTime::UNIX_EPOCH + TTL;
        Call { id: self.message.id, attempt: self.past.attempts, expires_at, good_for: TTL }
    }
}

impl DeliveryLedger for Book {
    async fn admit(&self, _: &Lease, batch: &Batch) -> Result<Admitted, LedgerError> {
        let mut book = self.0.lock().unwrap();
        let mut admitted = Admitted::default();
        for Incoming { message, .. } in batch.messages() {
            let mut entry = Entry {
                message: message.clone(),
                state: DeliveryState::Pending,
                past: Past::default(),
                due_at: Instant::now(),
            };
            match batch.call_now.get(&message.id) {
                Some(gateway) => admitted.calls.push(entry.call(gateway)),
                None => admitted.fresh.push(message.id),
            }
            let place = book.all.len();
            book.places.insert(message.id, place);
            book.all.push(entry);
        }
        Ok(admitted)
    }

    async fn start(
        &self,
        _: &Lease,
        starts: &[Start],
        _: Duration,
    ) -> Result<Started, LedgerError> {
        let mut book = self.0.lock().unwrap();
        let mut started = Started::default();
        for Start { id, next } in starts {
            if let Next::Buy(gateway, cost) = next
                && !book.pays(gateway, cost)
            {
                started.unaffordable.push(*id);
                continue;
            }
            let entry = book.of(*id);
            assert_eq!(entry.state, DeliveryState::Pending);
            match next {
                Next::Call(gateway) | Next::Buy(gateway, _) => {
                    started.calls.push(entry.call(gateway));
                }
                Next::Wait(wait) => entry.due_at = Instant::now() + *wait,
                Next::Fail(_) | Next::Unknown(_) => {
                    let may_have_it = !entry.past.ambiguous.is_empty();
                    entry.state =
                        if may_have_it { DeliveryState::Unknown } else { DeliveryState::Failed };
                    let (id, state) = (*id, entry.state);
                    started.ended.push(Recorded { id, state, age: Duration::ZERO });
                }
            }
        }
        Ok(started)
    }

    async fn finish(&self, outcomes: &[CallOutcome]) -> Result<Vec<Recorded>, LedgerError> {
        let mut book = self.0.lock().unwrap();
        let mut all = Vec::new();
        for outcome in outcomes {
            if let Verdict::Sent { awaited, .. } = &outcome.verdict {
                book.awaited.insert(outcome.id, awaited.clone());
            }
            let entry = book.of(outcome.id);
            assert_eq!(entry.past.attempts, outcome.attempt);
            entry.state = recorded(outcome).state;
            if let Verdict::Retry { after } = outcome.verdict {
                entry.due_at = Instant::now() + after;
            }
            let gateway = entry.past.tried.last().unwrap().clone();
            match outcome.class {
                OutcomeClass::Ambiguous => entry.past.may_have(gateway),
                OutcomeClass::Unroutable => entry.past.unroutable.push(gateway),
                _ => {}
            }
            all.push(recorded(outcome));
        }
        Ok(all)
    }

    async fn open(&self, _: &Lease) -> Result<Vec<(PhoneNumber, usize)>, LedgerError> {
        let book = self.0.lock().unwrap();
        let mut open: HashMap<PhoneNumber, usize> = HashMap::new();
        for entry in book.open() {
            *open.entry(entry.message.phone.clone()).or_default() += 1;
        }
        Ok(open.into_iter().collect())
    }

    async fn due(&self, _: &Lease, limit: usize) -> Result<Vec<Due>, LedgerError> {
        let book = self.0.lock().unwrap();
        let mut phones = HashSet::new();
        let oldest = book.open().filter(|entry| phones.insert(&entry.message.phone));
        let due = oldest.filter(|entry| {
            entry.state == DeliveryState::Pending && entry.due_at <= Instant::now()
        });
        let mut due: Vec<_> = due
            .map(|entry| Due {
                message: entry.message.clone(),
                trace: None,
                interrupted: false,
                expired: false,
                past: entry.past.clone(),
            })
            .collect();
        due.sort_by_key(|due| due.past.attempts > 0);
        due.truncate(limit);
        Ok(due)
    }

    async fn passed_over(
        &self,
        messages: &[MessageId],
    ) -> Result<HashMap<MessageId, Vec<GatewayName>>, LedgerError> {
        let book = self.0.lock().unwrap();
        let passed_over = |id: &MessageId| Some((*id, book.passed_over.get(id)?.clone()));
        Ok(messages.iter().filter_map(passed_over).collect())
    }
}

impl Book {
    fn state(&self, number: i64) -> DeliveryState {
        self.0.lock().unwrap().of(message(number).id).state
    }

    fn count(&self, state: DeliveryState) -> usize {
        self.0.lock().unwrap().all.iter().filter(|entry| entry.state == state).count()
    }
}

#[derive(Debug, Clone)]
enum Behaviour {
    Accepts,
    Answers(SendError),
    /// It takes the message and never answers.
    Hangs,
}

/// A gateway whose behaviour a test sets.
#[derive(Debug, Clone)]
struct Fake {
    deduplicates: bool,
    behaviour: Arc<Mutex<Behaviour>>,
    /// Each call: when it began, for which message, and whether it was accepted.
    calls: Arc<Mutex<Vec<(Instant, MessageId, bool)>>>,
}

impl Fake {
    fn new(behaviour: Behaviour, deduplicates: bool) -> Self {
        Self { deduplicates, behaviour: Arc::new(Mutex::new(behaviour)), calls: Arc::default() }
    }

    fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn accepted(&self) -> Vec<(Instant, MessageId)> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.2).map(|call| (call.0, call.1)).collect()
    }

    /// Returns when the first message after `since` was accepted.
    fn accepted_after(&self, since: Instant) -> Option<Instant> {
        self.accepted().into_iter().map(|(at, _)| at).find(|at| *at > since)
    }
}

const LATENCY: Duration = Duration::from_millis(30);

impl SmsGateway for Fake {
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        let behaviour = self.behaviour.lock().unwrap().clone();
        let accepts = matches!(behaviour, Behaviour::Accepts);
        self.calls.lock().unwrap().push((Instant::now(), sms.message.id, accepts));
        tokio::time::sleep(LATENCY).await;
        match behaviour {
            Behaviour::Accepts => Ok(Accepted::default()),
            Behaviour::Answers(error) => Err(error),
            Behaviour::Hangs => std::future::pending().await,
        }
    }

    fn deduplicates(&self) -> bool {
        self.deduplicates
    }
}

const CALL_LIMIT: Duration = Duration::from_secs(12);

fn name(text: &str) -> GatewayName {
    text.parse().unwrap()
}

/// A route for numbers that begin with `prefix`.
fn route(prefix: &str, gateways: &[&str]) -> Route {
    Route {
        prefixes: [prefix.to_owned()].into(),
        gateways: Preference::InOrder(gateways.iter().map(|it| name(it)).collect()),
        ..Route::default()
    }
}

fn table(gateways: &[(&str, &Fake)], routes: Vec<Route>) -> RoutingTable<Fake> {
    let limits = GatewayLimits {
        call_limit: CALL_LIMIT,
        in_flight: std::num::NonZeroUsize::new(50),
        in_process: None,
        per_second: None,
    };
    let gateways = gateways.iter().map(|(it, fake)| RoutedGateway {
        name: name(it),
        gateway: Arc::new((*fake).clone()),
        limits,
    });
    RoutingTable {
        gateways: gateways.collect(),
        routes,
        after_ambiguous: AfterAmbiguous::Same,
        receipts: None,
    }
}

struct Service {
    deliver: DeliverMessages<Book, Fake, StdRng>,
    inbox: mpsc::Sender<Fetched>,
    book: Book,
    next: i64,
    /// Records that have arrived and do not fit into the inbox yet.
    waiting: Vec<Record>,
}

impl Service {
    fn new(table: RoutingTable<Fake>) -> Self {
        let book = Book::default();
        let (sender, inbox) = mpsc::channel(1);
        let settings = DeliverSettings {
            templates: Arc::new(Templates::new("Your code: {code}".parse().unwrap())),
            vault: Vault::default(),
            traced: TracedMessages::default(),
            receipt_urls: ReceiptUrls::default(),
            default_ttl: TTL,
            beat: Instant::now(),
            concurrency: 64,
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
        let router = Router::new(table, Arc::new(|_| None));
        let rng = StdRng::seed_from_u64(1);
        let ledger = Arc::new(book.clone());
        let deliver = DeliverMessages::new(ledger, router, rng, settings, lease, inbox);
        Self { deliver, inbox: sender, book, next: 0, waiting: Vec::new() }
    }

    /// Works for `time`. Meanwhile a message arrives for each prefix every `interval`. Returns when each
    /// message arrived.
    async fn run(
        &mut self,
        time: Duration,
        interval: Duration,
        prefixes: &[&str],
    ) -> HashMap<MessageId, Instant> {
        let end = Instant::now() + time;
        let mut arrival = Instant::now();
        let mut arrived = HashMap::new();
        while Instant::now() < end {
            let now = Instant::now();
            while arrival <= now && !prefixes.is_empty() {
                for prefix in prefixes {
                    let mut record = record(self.next);
                    let incoming = record.content.as_mut().unwrap();
                    let number = format!("{prefix}{:07}", self.next);
                    incoming.message.phone = number.parse().unwrap();
                    arrived.insert(incoming.message.id, arrival);
                    self.waiting.push(record);
                    self.next += 1;
                }
                arrival += interval;
            }
            if !self.waiting.is_empty()
                && let Ok(place) = self.inbox.try_reserve()
            {
                place.send(fetched(std::mem::take(&mut self.waiting)));
            }
            let next = if prefixes.is_empty() { end } else { arrival.min(end) };
            tokio::select! {
                () = self.deliver.wait() => drop(self.deliver.act().await.unwrap()),
                () = sleep_until(next) => {}
            }
        }
        arrived
    }
}

/// Fails if a message was accepted twice, or is not accepted within `limit` of its arrival.
#[track_caller]
fn check_latency(arrived: &HashMap<MessageId, Instant>, gateways: &[&Fake], limit: Duration) {
    let mut accepted: HashMap<MessageId, Instant> = HashMap::new();
    for (at, id) in gateways.iter().flat_map(|gateway| gateway.accepted()) {
        assert_eq!(accepted.insert(id, at), None, "accepted twice");
    }
    for (id, arrival) in arrived {
        let Some(at) = accepted.get(id) else { panic!("not accepted") };
        assert!(*at - *arrival <= limit, "after {:?}", *at - *arrival);
    }
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

const OFTEN: Duration = Duration::from_millis(50);

fn refusals() -> Vec<SendError> {
    let down = |detail: &str| SendError::Unavailable { detail: detail.into(), retry_after: None };
    let throttled = |retry_after| SendError::Throttled { detail: "429".into(), retry_after };
    vec![
        down("connection refused"),
        down("503"),
        throttled(None),
        throttled(Some(seconds(600))),
        SendError::Misconfigured("401".into()),
        SendError::Unroutable("21408".into()),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_goes_to_the_next_gateway_within_milliseconds() {
    for error in refusals() {
        let is_unroutable = matches!(error, SendError::Unroutable(_));
        let first = Fake::new(Behaviour::Answers(error), true);
        let second = Fake::new(Behaviour::Accepts, false);
        let table = table(&[("a", &first), ("b", &second)], vec![route("7", &["a", "b"])]);
        let mut service = Service::new(table);

        let arrived = service.run(seconds(20), OFTEN, &["7999"]).await;
        service.run(seconds(1), OFTEN, &[]).await;

        check_latency(&arrived, &[&first, &second], LATENCY + Duration::from_millis(60));
        assert_eq!(second.accepted().len(), 400);
        // Five failures, and the probes after 1, 2, 4 and 8 seconds.
        assert!(is_unroutable || first.calls() <= 20, "{} calls", first.calls());

        first.set(Behaviour::Accepts);
        let healed = Instant::now();
        let arrived = service.run(seconds(60), OFTEN, &["7999"]).await;
        service.run(seconds(1), OFTEN, &[]).await;

        check_latency(&arrived, &[&first, &second], LATENCY + Duration::from_millis(60));
        let used_again = first.accepted_after(healed).unwrap() - healed;
        assert!(used_again <= seconds(31), "{used_again:?}");
        assert!(first.accepted().len() > 500);
    }
}

#[tokio::test(start_paused = true)]
async fn messages_go_to_the_next_gateway_when_a_budget_is_used_up_and_then_fail() {
    let first = Fake::new(Behaviour::Accepts, true);
    let second = Fake::new(Behaviour::Accepts, true);
    let table = table(&[("a", &first), ("b", &second)], vec![route("7", &["a", "b"])]);
    let mut service = Service::new(table);
    let amount = |text: &str| text.parse().ok();
    let tariff = |total| Tariff {
        prices: Prices { default: amount("0.05"), ..Prices::default() },
        budget: Budget { total: amount(total), ..Budget::default() },
        home: None,
    };
    let tariffs = [(name("a"), tariff("2")), (name("b"), tariff("1"))];
    service.deliver.router.set_tariffs(tariffs);

    service.run(seconds(5), OFTEN, &["7999"]).await;
    assert_eq!(service.book.count(DeliveryState::Failed), 0, "a call may give something back");
    service.run(seconds(40), OFTEN, &[]).await;

    assert_eq!((first.calls(), second.calls()), (40, 20));
    assert_eq!(service.book.count(DeliveryState::Sent), 60);
    assert_eq!(service.book.count(DeliveryState::Failed), 40);
    let call_now = service.book.0.lock().unwrap().spent[&(name("a"), String::new())];
    assert_eq!(call_now, 2_000_000, "no call was granted without its cost");
}

/// It does not ask the other one again and again either.
#[tokio::test(start_paused = true)]
async fn a_number_that_one_gateway_refuses_and_the_other_may_not_pay_for_fails() {
    let first = Fake::new(Behaviour::Answers(SendError::Unroutable("21408".into())), true);
    let second = Fake::new(Behaviour::Accepts, true);
    let table = table(&[("a", &first), ("b", &second)], vec![route("7", &["a", "b"])]);
    let mut service = Service::new(table);
    let nothing = Budget { total: "0".parse().ok(), ..Budget::default() };
    let prices = Prices { default: "0.05".parse().ok(), ..Prices::default() };
    let tariff = Tariff { prices, budget: nothing, home: None };
    service.deliver.router.set_tariffs([(name("b"), tariff)]);

    service.run(seconds(1), seconds(1), &["7999"]).await;
    service.run(seconds(60), OFTEN, &[]).await;

    assert_eq!(service.book.count(DeliveryState::Failed), 1);
    assert!(first.calls() <= 3, "{} calls", first.calls());
    assert_eq!(second.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_an_ambiguous_outcome_the_next_gateway_gets_the_message_if_that_is_allowed() {
    let unclear = SendError::Ambiguous("500".into());
    for behaviour in [Behaviour::Answers(unclear), Behaviour::Hangs] {
        let hangs = matches!(behaviour, Behaviour::Hangs);
        let first = Fake::new(behaviour, false);
        let second = Fake::new(Behaviour::Accepts, false);
        let table = table(&[("a", &first), ("b", &second)], vec![route("7", &["a", "b"])]);
        let table = RoutingTable { after_ambiguous: AfterAmbiguous::Next, ..table };
        let mut service = Service::new(table);

        let begin = Instant::now();
        let arrived = service.run(seconds(30), OFTEN, &["7999"]).await;
        service.run(CALL_LIMIT + seconds(1), OFTEN, &[]).await;

        let limit = if hangs { CALL_LIMIT } else { LATENCY };
        check_latency(&arrived, &[&second], limit + Duration::from_millis(60));
        assert!(second.accepted_after(begin).unwrap() - begin < seconds(4));
        let late = arrived.iter().filter(|(_, at)| **at > begin + seconds(4));
        let delayed = late.filter(|(id, at)| {
            second
                .accepted()
                .iter()
                .any(|(accepted, it)| it == *id && *accepted - **at > LATENCY * 2)
        });
        // One message at a time probes the first.
        assert!(delayed.count() <= 4);
        first.set(Behaviour::Accepts);
        let healed = Instant::now();
        service.run(seconds(60), OFTEN, &["7999"]).await;
        assert!(first.accepted_after(healed).unwrap() - healed <= seconds(31));
    }
}

#[tokio::test(start_paused = true)]
async fn with_same_no_message_is_called_for_at_two_gateways_after_an_ambiguous_outcome() {
    for deduplicates in [true, false] {
        let first = Fake::new(Behaviour::Answers(SendError::Ambiguous("500".into())), deduplicates);
        let second = Fake::new(Behaviour::Accepts, true);
        let table = table(&[("a", &first), ("b", &second)], vec![route("7", &["a", "b"])]);
        let mut service = Service::new(table);

        let arrived = service.run(seconds(20), OFTEN, &["7999"]).await;
        first.set(Behaviour::Accepts);
        service.run(seconds(60), OFTEN, &[]).await;

        let at_first: HashSet<_> = first.calls.lock().unwrap().iter().map(|call| call.1).collect();
        assert!(at_first.len() >= 5);
        assert!(second.accepted().iter().all(|(_, id)| !at_first.contains(id)));
        let sent = service.book.count(DeliveryState::Sent);
        let unknown = service.book.count(DeliveryState::Unknown);
        assert_eq!(sent + unknown, arrived.len());
        assert_eq!(unknown, if deduplicates { 0 } else { at_first.len() });
    }
}

#[tokio::test(start_paused = true)]
async fn another_route_is_not_slower_while_a_gateway_fails_or_hangs() {
    let refused = SendError::Unavailable { detail: "refused".into(), retry_after: None };
    let misconfigured = SendError::Misconfigured("401".into());
    for behaviour in
        [Behaviour::Answers(refused), Behaviour::Answers(misconfigured), Behaviour::Hangs]
    {
        let first = Fake::new(behaviour.clone(), true);
        let second = Fake::new(Behaviour::Accepts, false);
        let routes = vec![route("7", &["a"]), route("4", &["b"])];
        let mut service = Service::new(table(&[("a", &first), ("b", &second)], routes));

        // Each 10 ms one message of each route: many more than fit in memory wait for the first.
        let arrived = service.run(seconds(30), Duration::from_millis(10), &["7999", "4999"]).await;
        service.run(seconds(1), OFTEN, &[]).await;

        let other: HashMap<_, _> =
            second.accepted().into_iter().map(|(at, id)| (id, at - arrived[&id])).collect();
        assert_eq!(other.len(), 3_000, "{behaviour:?}");
        let longest = other.values().max().unwrap();
        assert!(*longest < Duration::from_millis(100), "{behaviour:?}: {longest:?}");
        assert_eq!(service.book.count(DeliveryState::Failed), 0);

        // Once the first works again, everything that waited for it is sent.
        first.set(Behaviour::Accepts);
        service.run(seconds(60), OFTEN, &[]).await;
        assert_eq!(service.book.count(DeliveryState::Sent), 6_000, "{behaviour:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_to_one_phone_keep_their_order_over_two_gateways() {
    let refused = SendError::Unavailable { detail: "refused".into(), retry_after: None };
    let first = Fake::new(Behaviour::Answers(refused.clone()), true);
    let second = Fake::new(Behaviour::Accepts, true);
    let table = table(&[("a", &first), ("b", &second)], vec![route("7", &["a", "b"])]);
    let mut service = Service::new(table);
    let same_phone = |number| {
        let mut record = record(number);
        record.content.as_mut().unwrap().message.phone = "79990000000".parse().unwrap();
        record
    };

    for round in 0..40 {
        // Both fail in turns.
        let (down, up) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        down.set(Behaviour::Answers(refused.clone()));
        up.set(Behaviour::Accepts);
        let numbers = round * 3..round * 3 + 3;
        service.inbox.send(fetched(numbers.map(same_phone).collect())).await.unwrap();
        service.run(Duration::from_millis(200), OFTEN, &[]).await;
    }
    service.run(seconds(60), OFTEN, &[]).await;

    let mut accepted = first.accepted();
    accepted.extend(second.accepted());
    accepted.sort();
    let ids: Vec<_> = accepted.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, (0..120).map(|number| message(number).id).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_misconfigured_gateway_burns_no_message() {
    let only = Fake::new(Behaviour::Answers(SendError::Misconfigured("401".into())), false);
    let mut service = Service::new(table(&[("a", &only)], vec![route("7", &["a"])]));

    let arrived = service.run(seconds(30), OFTEN, &["7999"]).await;
    assert_eq!(service.book.count(DeliveryState::Pending), arrived.len());
    assert!(only.calls() <= 6, "{} calls", only.calls());
    only.set(Behaviour::Accepts);
    service.run(seconds(30), OFTEN, &[]).await;

    assert_eq!(service.book.count(DeliveryState::Sent), arrived.len());
}

#[tokio::test(start_paused = true)]
async fn a_number_that_no_gateway_delivers_to_fails() {
    let unroutable = Behaviour::Answers(SendError::Unroutable("21408".into()));
    let (first, second) = (Fake::new(unroutable.clone(), true), Fake::new(unroutable, true));
    let routes = vec![route("7", &["a", "b"]), route("4", &["b"])];
    let mut service = Service::new(table(&[("a", &first), ("b", &second)], routes));

    service.run(OFTEN, seconds(1), &["7999", "4999", "1999"]).await;
    service.run(seconds(5), OFTEN, &[]).await;

    for number in 0..3 {
        assert_eq!(service.book.state(number), DeliveryState::Failed, "{number}");
    }
    assert!(first.calls() + second.calls() <= 5, "{first:?} {second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_number_that_one_gateway_refuses_waits_for_the_other_to_recover() {
    let unroutable = Behaviour::Answers(SendError::Unroutable("21408".into()));
    let first = Fake::new(unroutable, true);
    let down = SendError::Unavailable { detail: "503".into(), retry_after: None };
    let second = Fake::new(Behaviour::Answers(down), true);
    let routes = vec![route("7", &["a", "b"]), route("4", &["b"])];
    let mut service = Service::new(table(&[("a", &first), ("b", &second)], routes));
    service.run(seconds(3), OFTEN, &["4999"]).await;

    let number = service.next;
    service.run(OFTEN, seconds(1), &["7999"]).await;
    service.run(seconds(3), OFTEN, &[]).await;
    second.set(Behaviour::Accepts);
    service.run(seconds(60), OFTEN, &[]).await;

    assert_eq!(service.book.state(number), DeliveryState::Sent);
    assert_eq!(first.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_may_have_been_taken_elsewhere_does_not_fail() {
    let first = Fake::new(Behaviour::Answers(SendError::Ambiguous("500".into())), false);
    let second = Fake::new(Behaviour::Answers(SendError::Rejected("21211".into())), false);
    let table = table(&[("a", &first), ("b", &second)], vec![route("7", &["a", "b"])]);
    let table = RoutingTable { after_ambiguous: AfterAmbiguous::Next, ..table };
    let mut service = Service::new(table);

    service.run(OFTEN, seconds(1), &["7999"]).await;
    service.run(seconds(1), OFTEN, &[]).await;

    assert_eq!(service.book.state(0), DeliveryState::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_messages_leave_in_under_four_seconds_with_fifty_in_flight() {
    let only = Fake::new(Behaviour::Accepts, false);
    let mut service = Service::new(table(&[("a", &only)], vec![route("7", &["a"])]));
    let records: Vec<Record> = (0..1_000).map(record).collect();

    let begin = Instant::now();
    service.inbox.send(fetched(records)).await.unwrap();
    service.run(seconds(4), OFTEN, &[]).await;

    let accepted = only.accepted();
    assert_eq!(accepted.len(), 1_000);
    assert!(accepted.last().unwrap().0 - begin < seconds(2));
}

/// A message of this service, with its place among those of its verification.
fn numbered(number: u8) -> Record {
    let id = domain::VerificationId::of_drawn([9; 16]).message(number);
    let message = Message { id, ..message(i64::from(number)) };
    let content = Ok(Incoming { message, validity: None, trace: None, sequence: None });
    Record { offset: i64::from(number), content }
}

#[tokio::test(start_paused = true)]
async fn a_code_that_is_sent_again_takes_a_gateway_that_did_not_have_it() {
    let [first, second, third] = [0; 3].map(|_| Fake::new(Behaviour::Accepts, true));
    let gateways = [("a", &first), ("b", &second), ("c", &third)];
    let receipts = ReceiptsInTime { within: seconds(20), of: [name("a"), name("b")].into() };
    let table = table(&gateways, vec![route("7", &["a", "b", "c"])]);
    let mut service = Service::new(RoutingTable { receipts: Some(receipts), ..table });
    let records: Vec<Record> = (1..=4).map(numbered).collect();
    let ids: Vec<MessageId> =
        records.iter().map(|it| it.content.as_ref().unwrap().message.id).collect();
    let names = |all: &[&str]| -> Vec<GatewayName> { all.iter().map(|it| name(it)).collect() };
    let passed_over = [(ids[1], names(&["a"])), (ids[2], names(&["a", "b"]))];
    let all = (ids[3], names(&["a", "b", "c"]));
    service.book.0.lock().unwrap().passed_over = passed_over.into_iter().chain([all]).collect();

    service.waiting = records;
    service.run(seconds(1), OFTEN, &[]).await;

    let taken = [&first, &second, &third].map(Fake::accepted);
    assert_eq!(
        taken.map(|calls| calls[..].iter().map(|it| it.1).collect::<Vec<_>>()),
        [vec![ids[0]], vec![ids[1]], vec![ids[2]]]
    );
    assert_eq!(service.book.count(DeliveryState::Failed), 1);
    let awaited = service.book.0.lock().unwrap().awaited.clone();
    let awaits =
        |all: &[&str]| Some(AwaitedReceipt { within: seconds(20), passed_over: names(all) });
    assert_eq!(awaited[&ids[0]], awaits(&["a"]));
    assert_eq!(awaited[&ids[1]], awaits(&["a", "b"]));
    assert_eq!(awaited[&ids[2]], None, "it reports none, and no other is left");
}

#[tokio::test(start_paused = true)]
async fn no_receipt_of_a_message_of_another_producer_is_awaited() {
    let first = Fake::new(Behaviour::Accepts, true);
    let receipts = ReceiptsInTime { within: seconds(20), of: [name("a")].into() };
    let table = table(&[("a", &first), ("b", &first)], vec![route("7", &["a", "b"])]);
    let mut service = Service::new(RoutingTable { receipts: Some(receipts), ..table });

    service.run(LATENCY, OFTEN, &["7999"]).await;
    service.run(seconds(1), OFTEN, &[]).await;

    let awaited: Vec<_> = service.book.0.lock().unwrap().awaited.values().cloned().collect();
    assert_eq!(awaited, [None]);
}
