//! The rules of the router on a paused clock.

use std::{collections::BTreeMap, num::NonZeroU32, sync::OnceLock};

use domain::{Factor, RegionalGateway};
use tokio::time::advance;

use super::*;
use crate::ports::MockSmsGateway;

const CALL_LIMIT: Duration = Duration::from_secs(12);
const MILLISECOND: Duration = Duration::from_millis(1);

fn name(text: &str) -> GatewayName {
    text.parse().unwrap()
}

fn gateway(text: &str, deduplicates: bool, limits: GatewayLimits) -> RoutedGateway<MockSmsGateway> {
    let mut gateway = MockSmsGateway::new();
    gateway.expect_deduplicates().return_const(deduplicates);
    RoutedGateway { name: name(text), gateway: Arc::new(gateway), limits }
}

fn route(gateways: &[&str]) -> Route {
    let gateways = Preference::InOrder(gateways.iter().map(|it| name(it)).collect());
    Route { gateways, ..Route::default() }
}

/// Two gateways in order, of which the first recognises a repeated message.
fn table() -> RoutingTable<MockSmsGateway> {
    RoutingTable {
        gateways: vec![
            gateway("a", true, GatewayLimits::none(CALL_LIMIT)),
            gateway("b", false, GatewayLimits::none(CALL_LIMIT)),
        ],
        routes: vec![route(&["a", "b"])],
        after_ambiguous: AfterAmbiguous::Same,
        receipts: None,
    }
}

fn limited(in_flight: usize, per_second: u32) -> GatewayLimits {
    GatewayLimits {
        call_limit: CALL_LIMIT,
        in_flight: NonZeroUsize::new(in_flight),
        in_process: None,
        per_second: NonZeroU32::new(per_second),
    }
}

/// Reads the region from the first digit.
fn router(table: RoutingTable<MockSmsGateway>) -> Router<MockSmsGateway> {
    let region = |phone: &PhoneNumber| match phone.as_str().as_bytes()[0] {
        b'7' => "RU".parse().ok(),
        b'4' => "DE".parse().ok(),
        _ => None,
    };
    Router::new(table, Arc::new(region))
}

fn past(tried: &[&str], ambiguous: &[&str]) -> Past {
    let names = |all: &[&str]| all.iter().map(|it| name(it)).collect();
    let attempts = u32::try_from(tried.len()).unwrap();
    Past { attempts, tried: names(tried), ambiguous: names(ambiguous), ..Past::default() }
}

fn choose_for(router: &Router<MockSmsGateway>, phone: &str, past: &Past) -> Choice<MockSmsGateway> {
    let load = PartitionLoad::new(usize::MAX);
    let id = MessageId::of_record("t", 0, 1, 0);
    router.choose(&Ask { id, phone: &phone.parse().unwrap(), past, load: &load })
}

fn choose(router: &Router<MockSmsGateway>) -> Choice<MockSmsGateway> {
    choose_for(router, "79991234567", &Past::default())
}

fn choose_to(router: &Router<MockSmsGateway>, phone: u64) -> Choice<MockSmsGateway> {
    choose_for(router, &(79_990_000_000 + phone).to_string(), &Past::default())
}

#[track_caller]
fn permit(choice: Choice<MockSmsGateway>) -> Permit<MockSmsGateway> {
    match choice {
        Choice::Call(permit) => permit,
        choice => panic!("{choice:?}"),
    }
}

/// Returns the choice in a word.
fn said(choice: &Choice<MockSmsGateway>) -> String {
    match choice {
        Choice::Call(permit) => permit.name().to_string(),
        Choice::Busy(_) => "busy".to_owned(),
        Choice::Wait(wait) => format!("wait {}", wait.as_millis()),
        Choice::Unknown => "unknown".to_owned(),
        Choice::Refuse(_) => "refuse".to_owned(),
    }
}

fn follow_up(router: &Router<MockSmsGateway>, past: &Past) -> FollowUp {
    let load = PartitionLoad::new(usize::MAX);
    let id = MessageId::of_record("t", 0, 1, 0);
    let phone = "79991234567".parse().unwrap();
    let called = past.tried.last().unwrap();
    router.follow_up(&Ask { id, phone: &phone, past, load: &load }, called)
}

fn unavailable() -> Result<Accepted, SendError> {
    Err(SendError::Unavailable { detail: "503".to_owned(), retry_after: None })
}

fn throttled(seconds: u64) -> Result<Accepted, SendError> {
    let retry_after = Some(Duration::from_secs(seconds));
    Err(SendError::Throttled { detail: "429".to_owned(), retry_after })
}

fn misconfigured() -> Result<Accepted, SendError> {
    Err(SendError::Misconfigured("401".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn the_first_route_that_matches_decides() {
    let params = Arc::new(BTreeMap::from([("dlt_entity_id".to_owned(), "7".to_owned())]));
    let mut all = vec![route(&["b"]), route(&["b", "a"]), route(&["a"])];
    all[0].regions = BTreeSet::from(["DE".parse().unwrap()]);
    (all[0].sender, all[0].params) = (Some("SHOP".into()), Arc::clone(&params));
    all[1].prefixes = BTreeSet::from(["7999".to_owned()]);
    let router = router(RoutingTable { routes: all, ..table() });
    let none = Past::default();

    let german = permit(choose_for(&router, "4915112345678", &none));
    assert_eq!((german.name(), german.sender()), (&name("b"), Some(&"SHOP".into())));
    assert_eq!(german.params(), &params);
    assert_eq!(said(&choose_for(&router, "79991234567", &none)), "b");
    let other = permit(choose_for(&router, "79881234567", &none));
    assert_eq!((other.name(), other.sender()), (&name("a"), None));
    let place = |phone: &str| router.route_of(&phone.parse().unwrap());
    assert_eq!(place("4915112345678"), Some(0));
    assert_eq!(place("15550001111"), Some(2));
}

#[tokio::test]
async fn the_region_is_looked_up_while_the_router_is_not_locked() {
    let own: Arc<OnceLock<Router<MockSmsGateway>>> = Arc::default();
    let shared = Arc::clone(&own);
    let region = move |_: &PhoneNumber| {
        let router = shared.get().unwrap();
        assert!(router.shared.state.try_lock().is_ok(), "locked");
        "RU".parse().ok()
    };
    let regions = ["RU".parse().unwrap()].into();
    let all = vec![Route { regions, ..route(&["b"]) }, route(&["a"])];
    let router = Router::new(RoutingTable { routes: all, ..table() }, Arc::new(region));
    own.set(router.clone()).unwrap();

    assert_eq!(router.route_of(&"79991234567".parse().unwrap()), Some(0));
    assert_eq!(said(&choose(&router)), "b");
    assert_eq!(follow_up(&router, &past(&["b"], &[])), FollowUp::Later { alone: true });
}

#[tokio::test]
async fn a_number_without_a_route_is_refused() {
    let mut german = route(&["a"]);
    german.regions = BTreeSet::from(["DE".parse().unwrap()]);
    let router = router(RoutingTable { routes: vec![german], ..table() });

    assert_eq!(said(&choose(&router)), "refuse");
    assert_eq!(said(&choose_for(&router, "4915112345678", &Past::default())), "a");
    assert_eq!(router.route_of(&"79991234567".parse().unwrap()), None);
}

#[tokio::test(start_paused = true)]
async fn the_gateway_with_fewer_tries_comes_first() {
    let router = router(table());

    for (tried, expected) in
        [(&[][..], "a"), (&["a"], "b"), (&["b"], "a"), (&["a", "b"], "a"), (&["a", "b", "a"], "b")]
    {
        assert_eq!(said(&choose_for(&router, "79991234567", &past(tried, &[]))), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_goes_on_if_the_first_gateway_has_no_room() {
    let mut table = table();
    table.gateways[0] = gateway("a", true, limited(2, 0));
    table.gateways[1] = gateway("b", true, limited(1, 0));
    let router = router(table);

    let taken: Vec<_> = (0..3).map(|_| permit(choose(&router))).collect();
    let names: Vec<_> = taken.iter().map(|permit| permit.name().as_str()).collect();
    assert_eq!(names, ["a", "a", "b"]);
    assert_eq!(said(&choose(&router)), "busy");

    drop(taken);
    assert_eq!(said(&choose(&router)), "a");
}

#[tokio::test(start_paused = true)]
async fn a_message_goes_on_if_the_process_can_make_no_more_calls_of_the_first_gateway() {
    let limits = GatewayLimits { in_process: NonZeroUsize::new(1), ..limited(50, 1_000) };
    let gateways =
        vec![gateway("a", true, limits), gateway("b", false, GatewayLimits::none(CALL_LIMIT))];
    let router = router(RoutingTable { gateways, ..table() });

    let first = permit(choose(&router));

    assert_eq!((first.name().as_str(), &*said(&choose(&router))), ("a", "b"));
}

#[tokio::test(start_paused = true)]
async fn a_partition_has_a_limit_of_its_own_for_each_gateway() {
    let router = router(table());
    let mut load = PartitionLoad::new(1);
    let (phone, none) = ("79991234567".parse().unwrap(), Past::default());
    let id = MessageId::of_record("t", 0, 1, 0);
    let choose = |load: &_| said(&router.choose(&Ask { id, phone: &phone, past: &none, load }));

    assert_eq!(choose(&load), "a");
    load.begin(&name("a"));
    assert_eq!(choose(&load), "b");
    load.begin(&name("b"));
    assert_eq!(choose(&load), "busy");
    load.end(&name("a"));
    assert_eq!(choose(&load), "a");
}

#[tokio::test(start_paused = true)]
async fn a_message_goes_on_if_the_rate_of_the_first_gateway_is_used_up() {
    let mut table = table();
    table.gateways[0] = gateway("a", true, limited(50, 2));
    let router = router(table);

    permit(choose(&router)).record(&Ok(Accepted::default()));
    assert_eq!(said(&choose(&router)), "b");
    advance(Duration::from_millis(500)).await;
    // A call that is not made uses up nothing.
    assert_eq!(said(&choose(&router)), "a");
    assert_eq!(said(&choose(&router)), "a");
}

#[tokio::test(start_paused = true)]
async fn a_message_without_room_asks_again_when_there_may_be_some() {
    let mut table = table();
    table.gateways[0] = gateway("a", true, limited(1, 0));
    table.gateways[1] = gateway("b", true, limited(2, 2));
    let router = router(table);
    let busy = |limit| {
        let (phone, none) = ("79991234567".parse().unwrap(), Past::default());
        let mut load = PartitionLoad::new(limit);
        load.begin(&name("a"));
        load.begin(&name("b"));
        let id = MessageId::of_record("t", 0, 1, 0);
        match router.choose(&Ask { id, phone: &phone, past: &none, load: &load }) {
            Choice::Busy(wait) => wait,
            choice => panic!("{choice:?}"),
        }
    };

    // Its own calls end, and it hears of that.
    assert_eq!(busy(1), Duration::MAX);
    let held = permit(choose(&router));
    // Other partitions may have the slot of the first.
    assert_eq!(busy(1), Duration::from_millis(20));
    permit(choose(&router)).record(&misconfigured());
    advance(Duration::from_millis(990)).await;
    // The second is probed soon.
    assert_eq!(busy(2), Duration::from_millis(10));
    drop(held);
    advance(Duration::from_millis(20)).await;
    permit(choose(&router)).record(&misconfigured());
    permit(choose(&router)).record(&Ok(Accepted::default()));
    // The rate of the second is used up.
    assert_eq!(busy(1), Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn consumers_share_the_limits() {
    let mut table = table();
    table.gateways[0] = gateway("a", true, limited(5, 4));
    table.routes = vec![route(&["a"])];
    let router = router(table);

    router.share(NonZeroUsize::new(2).unwrap());

    assert_eq!(router.snapshot()[0].in_flight_limit, Some(3));
    let first = permit(choose(&router));
    advance(Duration::from_millis(499)).await;
    assert_eq!(said(&choose(&router)), "busy");
    advance(MILLISECOND).await;
    assert_eq!(said(&choose(&router)), "a");
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn an_open_gateway_is_passed_over_and_one_message_probes_it() {
    let router = router(table());
    permit(choose(&router)).record(&misconfigured());

    assert_eq!(said(&choose(&router)), "b");
    advance(Duration::from_secs(1)).await;
    let probe = permit(choose(&router));
    assert_eq!(probe.name(), &name("a"));
    assert_eq!(said(&choose(&router)), "b");
    probe.record(&Ok(Accepted::default()));

    assert_eq!(said(&choose(&router)), "a");
}

#[tokio::test(start_paused = true)]
async fn a_message_waits_for_the_first_breaker_that_lets_it_through() {
    let router = router(table());
    permit(choose(&router)).record(&misconfigured());
    advance(Duration::from_millis(300)).await;
    permit(choose(&router)).record(&misconfigured());

    assert_eq!(said(&choose(&router)), "wait 700");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_refuses_numbers_works() {
    let router = router(table());
    for number in 0..50 {
        let refused = match number % 2 {
            0 => SendError::Rejected("21211".to_owned()),
            _ => SendError::Unroutable("21408".to_owned()),
        };
        permit(choose(&router)).record(&Err(refused));
    }

    assert_eq!(said(&choose(&router)), "a");
}

#[tokio::test(start_paused = true)]
async fn settings_of_one_route_do_not_open_a_gateway_for_the_others() {
    let of_germany = Route {
        regions: ["DE".parse().unwrap()].into(),
        sender: Some("SHOP".into()),
        ..route(&["a"])
    };
    let router = router(RoutingTable { routes: vec![of_germany, route(&["a"])], ..table() });

    permit(choose_for(&router, "491701234567", &Past::default())).record(&misconfigured());

    assert_eq!(said(&choose(&router)), "a");
    permit(choose(&router)).record(&misconfigured());
    assert_eq!(said(&choose(&router)), "wait 1000");
}

#[tokio::test(start_paused = true)]
async fn an_opening_lasts_as_long_as_a_throttled_gateway_asks_for() {
    let router = router(table());
    for phone in 0..4 {
        permit(choose_to(&router, phone)).record(&throttled(8));
        assert_eq!(said(&choose(&router)), "a", "a few numbers may be limited");
    }
    permit(choose_to(&router, 4)).record(&throttled(8));

    advance(Duration::from_millis(7_999)).await;
    assert_eq!(said(&choose(&router)), "b");
    advance(MILLISECOND).await;
    assert_eq!(said(&choose(&router)), "a");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_fails_again_and_again_does_not_open_a_gateway_for_the_others() {
    let router = router(RoutingTable { routes: vec![route(&["a"])], ..table() });

    for _ in 0..100 {
        permit(choose(&router)).record(&throttled(8));
    }

    assert_eq!(said(&choose_to(&router, 1)), "a");
    let status = router.snapshot().remove(0);
    assert_eq!((status.failures_in_a_row, status.failed_of_last), (1, (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn snapshot_says_that_an_open_gateway_is_misconfigured() {
    let router = router(table());
    let is_misconfigured = || router.snapshot()[0].is_misconfigured;
    assert!(!is_misconfigured());

    permit(choose(&router)).record(&misconfigured());
    assert!(is_misconfigured());
    advance(Duration::from_secs(1)).await;
    permit(choose(&router)).record(&Ok(Accepted::default()));

    assert!(!is_misconfigured());
}

#[tokio::test(start_paused = true)]
async fn a_silent_gateway_is_used_only_if_no_other_can_be() {
    let mut table = table();
    table.gateways[1] = gateway("b", true, limited(1, 0));
    let router = router(table);
    let hanging: Vec<_> = (0..2).map(|_| permit(choose(&router))).collect();

    advance(Duration::from_millis(2_999)).await;
    assert_eq!(said(&choose(&router)), "a");
    advance(MILLISECOND).await;
    assert_eq!(router.snapshot()[0].state, GatewayState::Silent);
    let other = permit(choose(&router));
    assert_eq!(other.name(), &name("b"));
    assert_eq!(said(&choose(&router)), "a", "the other is full");
    drop(other);

    for permit in hanging {
        permit.record(&Ok(Accepted::default()));
    }
    assert_eq!(said(&choose(&router)), "a");
}

fn drain(router: &Router<MockSmsGateway>, names: &[&str]) {
    router.drain(&names.iter().map(|it| name(it)).collect());
}

#[tokio::test(start_paused = true)]
async fn a_drained_gateway_is_given_nothing() {
    let router = router(table());
    drain(&router, &["a", "another"]);

    assert_eq!(said(&choose(&router)), "b");
    assert_eq!(router.snapshot()[0].state, GatewayState::Drained);
    drain(&router, &["a", "b"]);
    assert_eq!(said(&choose(&router)), "wait 5000");
    drain(&router, &["b"]);
    assert_eq!(said(&choose(&router)), "a");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_may_have_been_taken_stays_at_a_gateway_that_recognises_it() {
    let router = router(table());

    for (tried, ambiguous, expected) in [
        (&["a"][..], &["a"][..], "a"),
        (&["b"], &["b"], "unknown"),
        (&["a", "b"], &["a", "b"], "unknown"),
        (&["c"], &["c"], "unknown"),
        (&["b", "a"], &["a"], "a"),
    ] {
        let past = past(tried, ambiguous);
        assert_eq!(said(&choose_for(&router, "79991234567", &past)), expected, "{past:?}");
    }
    drain(&router, &["a"]);
    assert_eq!(said(&choose_for(&router, "79991234567", &past(&["a"], &["a"]))), "wait 5000");
}

#[tokio::test(start_paused = true)]
async fn with_next_it_goes_on_and_never_back_to_one_that_does_not_recognise_it() {
    let router = router(RoutingTable { after_ambiguous: AfterAmbiguous::Next, ..table() });

    for (tried, ambiguous, expected) in [
        (&["a"][..], &["a"][..], "b"),
        (&["b"], &["b"], "a"),
        // The first recognises it, and the second does not.
        (&["a", "b"], &["a", "b"], "a"),
        (&["a", "b", "a", "a"], &["b"], "a"),
    ] {
        let past = past(tried, ambiguous);
        assert_eq!(said(&choose_for(&router, "79991234567", &past)), expected, "{past:?}");
    }
    router.replace(RoutingTable {
        routes: vec![route(&["b"])],
        after_ambiguous: AfterAmbiguous::Next,
        ..table()
    });
    assert_eq!(said(&choose_for(&router, "79991234567", &past(&["b"], &["b"]))), "unknown");
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_refusal_depends_on_the_other_gateways() {
    let router = router(table());
    let later = |alone| FollowUp::Later { alone };

    assert_eq!(follow_up(&router, &past(&["a"], &[])), FollowUp::AtOnce);
    assert_eq!(follow_up(&router, &past(&["a", "b"], &[])), later(false));
    assert_eq!(follow_up(&router, &past(&["a", "b", "a"], &[])), FollowUp::AtOnce);
    // After an ambiguous call, the others are out of the question.
    assert_eq!(follow_up(&router, &past(&["a"], &["a"])), later(true));
    assert_eq!(follow_up(&router, &past(&["b"], &["b"])), FollowUp::Unknown);

    drain(&router, &["b"]);
    assert_eq!(follow_up(&router, &past(&["a"], &[])), later(false));
    router.replace(RoutingTable { routes: vec![route(&["a"])], ..table() });
    assert_eq!(follow_up(&router, &past(&["a"], &[])), later(true));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_does_not_deliver_to_the_number_is_not_called_for_it_again() {
    let router = router(table());
    let refused = Past { unroutable: vec![name("a")], ..past(&["a"], &[]) };
    assert_eq!(said(&choose_for(&router, "79991234567", &refused)), "b");
    assert_eq!(follow_up(&router, &refused), FollowUp::AtOnce);

    permit(choose_for(&router, "79991234567", &refused)).record(&misconfigured());

    assert_eq!(said(&choose_for(&router, "79991234567", &refused)), "wait 1000");
    assert_eq!(follow_up(&router, &refused), FollowUp::Later { alone: false });
    let by_both = Past { unroutable: vec![name("a"), name("b")], ..past(&["a", "b"], &[]) };
    assert_eq!(follow_up(&router, &by_both), FollowUp::Later { alone: true });
    assert_eq!(said(&choose_for(&router, "79991234567", &by_both)), "refuse");
}

#[tokio::test(start_paused = true)]
async fn with_next_an_ambiguous_message_goes_on_at_once() {
    let router = router(RoutingTable { after_ambiguous: AfterAmbiguous::Next, ..table() });

    assert_eq!(follow_up(&router, &past(&["a"], &["a"])), FollowUp::AtOnce);
    assert_eq!(follow_up(&router, &past(&["b"], &["b"])), FollowUp::AtOnce);
}

#[tokio::test(start_paused = true)]
async fn a_new_table_keeps_what_is_known_of_gateways_whose_name_stays() {
    let router = router(table());
    let in_progress = permit(choose(&router));
    permit(choose(&router)).record(&misconfigured());
    drain(&router, &["b"]);

    let limits = limited(7, 0);
    router.replace(RoutingTable {
        gateways: vec![
            gateway("a", true, limits),
            gateway("b", true, limits),
            gateway("c", true, limits),
        ],
        routes: vec![route(&["a", "b", "c"])],
        ..table()
    });

    let states: Vec<_> = router.snapshot().iter().map(|gateway| gateway.state).collect();
    assert_eq!(states, [GatewayState::Open, GatewayState::Drained, GatewayState::Closed]);
    let first = &router.snapshot()[0];
    assert_eq!((first.in_flight, first.in_flight_limit), (1, Some(7)));
    assert_eq!(said(&choose(&router)), "c");
    in_progress.record(&Ok(Accepted::default()));
    assert_eq!(router.snapshot()[0].in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_table_names_its_own_gateways() {
    let router = router(table());
    let before = router.gateway(&name("a")).unwrap();

    let gateways = vec![gateway("a", true, GatewayLimits::none(CALL_LIMIT))];
    router.replace(RoutingTable { gateways, routes: vec![route(&["a"])], ..table() });

    assert!(!Arc::ptr_eq(&before, &router.gateway(&name("a")).unwrap()));
    assert!(router.gateway(&name("b")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_gateway_that_was_removed_and_came_back_changes_nothing() {
    let router = router(table());
    let earlier = permit(choose(&router));
    let only = |it: &str| RoutingTable {
        gateways: vec![gateway(it, true, limited(1, 1))],
        routes: vec![route(&[it])],
        ..table()
    };
    router.replace(only("c"));
    router.replace(only("a"));
    let held = permit(choose(&router));

    earlier.record(&misconfigured());

    assert_eq!(said(&choose(&router)), "busy");
    assert_eq!(router.snapshot()[0].state, GatewayState::Closed);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_counts_calls_by_outcome() {
    let router = router(table());
    permit(choose(&router)).record(&Ok(Accepted::default()));
    permit(choose_to(&router, 1)).record(&unavailable());
    permit(choose_to(&router, 2)).record(&unavailable());
    let _held = permit(choose(&router));
    drop(permit(choose(&router)));

    let status = router.snapshot().remove(0);

    let counts: HashMap<_, _> =
        status.outcomes.iter().map(|(class, count)| (class.as_str(), *count)).collect();
    assert_eq!((counts["accepted"], counts["unavailable"], counts["ambiguous"]), (1, 2, 0));
    assert_eq!((status.in_flight, status.failed_of_last), (1, (2, 3)));
    assert_eq!((status.failures_in_a_row, status.openings), (2, 0));
    assert!((status.per_second - 0.1).abs() < 0.01, "{}", status.per_second);
}

/// Returns how many of a thousand messages to a phone go to gateway `a`.
fn to_a(router: &Router<MockSmsGateway>, phone: &str) -> usize {
    let (phone, past, load) =
        (phone.parse().unwrap(), Past::default(), PartitionLoad::new(usize::MAX));
    let choose = |number| {
        let id = MessageId::of_record("t", 0, number, 0);
        said(&router.choose(&Ask { id, phone: &phone, past: &past, load: &load }))
    };
    (0..1_000).filter(|number| choose(*number) == "a").count()
}

fn factor(gateway: &str, region: &str, percent: u8) -> (RegionalGateway, Factor) {
    let of = RegionalGateway { gateway: name(gateway), region: region.parse().ok() };
    (of, Factor::from_percent(percent).unwrap())
}

#[tokio::test(start_paused = true)]
async fn gateway_is_first_for_the_part_of_its_messages_that_its_factor_says() {
    let router = router(table());
    router.set_factors([factor("a", "RU", 25)]);
    assert!((210..290).contains(&to_a(&router, "79991234567")), "a quarter");
    assert_eq!(to_a(&router, "493012345678"), 1_000, "another region");
    assert_eq!(to_a(&router, "12025550123"), 1_000, "no region");

    router.set_factors([factor("b", "RU", 10)]);
    assert_eq!(to_a(&router, "79991234567"), 1_000, "it is first anyway");

    router.set_factors([factor("a", "RU", 100)]);
    assert_eq!(to_a(&router, "79991234567"), 1_000);
    assert_eq!(router.factors(), []);
}

#[tokio::test(start_paused = true)]
async fn factor_takes_messages_from_the_part_that_a_weight_gives() {
    let mut table = table();
    table.routes[0].gateways = Preference::ByWeight(vec![(name("a"), 80), (name("b"), 20)]);
    let router = router(table);
    assert!((760..840).contains(&to_a(&router, "79991234567")));

    router.set_factors([factor("a", "RU", 50)]);

    assert!((360..440).contains(&to_a(&router, "79991234567")), "half of four fifths");
}

#[tokio::test(start_paused = true)]
async fn gateway_with_a_low_factor_still_takes_what_the_others_cannot() {
    let router = router(table());
    router.set_factors([factor("a", "RU", 10)]);

    router.drain(&[name("b")].into());

    assert_eq!(to_a(&router, "79991234567"), 1_000);
}

#[tokio::test(start_paused = true)]
async fn regions_are_those_of_the_routes() {
    let mut table = table();
    let regions = ["RU", "KZ"].map(|region| region.parse().unwrap()).into();
    table.routes.insert(0, Route { regions, ..route(&["b"]) });
    let router = router(table);

    let regions = router.regions();

    let expected = [factor("b", "KZ", 100).0, factor("b", "RU", 100).0];
    assert_eq!(regions.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn gateways_that_were_replaced_or_removed_are_dropped() {
    let before = table();
    let gateways: Vec<_> = before.gateways.iter().map(|it| Arc::downgrade(&it.gateway)).collect();
    let router = router(before);
    let called = permit(choose(&router));

    let kept = gateway("a", true, GatewayLimits::none(CALL_LIMIT));
    router.replace(RoutingTable { gateways: vec![kept], routes: vec![route(&["a"])], ..table() });

    let alive = || gateways.iter().map(|it| it.upgrade().is_some()).collect::<Vec<_>>();
    assert_eq!(alive(), [true, false], "a call of the first is in progress");
    drop(called);
    assert_eq!(alive(), [false, false]);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_is_awaited_only_if_the_code_can_go_elsewhere() {
    let receipts = ReceiptsInTime { within: Duration::from_secs(20), of: [name("a")].into() };
    let with_receipts = || RoutingTable { receipts: Some(receipts.clone()), ..table() };
    let router = router(with_receipts());
    let awaited = |past: &Past, called: &str| {
        let load = PartitionLoad::new(usize::MAX);
        let id = MessageId::of_record("t", 0, 1, 0);
        let phone = "79991234567".parse().unwrap();
        let ask = Ask { id, phone: &phone, past, load: &load };
        router.awaited_receipt(&ask, &name(called)).map(|awaited| awaited.passed_over)
    };
    let names = |all: &[&str]| all.iter().map(|it| name(it)).collect::<Vec<_>>();

    assert_eq!(awaited(&past(&["a"], &[]), "a"), Some(names(&["a"])));
    // A gateway that refused the message can take it now.
    assert_eq!(awaited(&past(&["b", "a"], &[]), "a"), Some(names(&["a"])));
    // The others may have the code, do not deliver to the number, or had the code before.
    assert_eq!(awaited(&past(&["b", "a"], &["b"]), "a"), None);
    assert_eq!(awaited(&Past { unroutable: names(&["b"]), ..past(&["b", "a"], &[]) }, "a"), None);
    assert_eq!(awaited(&Past { passed_over: names(&["b"]), ..past(&["a"], &[]) }, "a"), None);
    assert_eq!(awaited(&past(&["b"], &[]), "b"), None, "it reports none");
    router.replace(RoutingTable { routes: vec![route(&["a"])], ..with_receipts() });
    assert_eq!(awaited(&past(&["a"], &[]), "a"), None, "it is alone");
    router.replace(table());
    assert_eq!(awaited(&past(&["a"], &[]), "a"), None, "it is off");
}
