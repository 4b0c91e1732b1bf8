//! Simulates the adaptive rule against services and pumpers of many kinds, second by second.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{
    Activity, GuardMode, GuardRule, Origin, PhoneNumber, Region, Rolling, VerificationId,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use super::{Admission, FlushGuard, Guard};
use crate::ports::{GuardCounts, GuardDecision, GuardDelta, GuardKey, GuardTotal, StoreError};

const WINDOW: Duration = Duration::from_secs(3_600);
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// The counts that processes share.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<HashMap<GuardKey, Kept>>>);

/// The counts of the window and of the day, and when they last changed.
type Kept = (Rolling, Rolling, Instant);

impl GuardCounts for Shared {
    async fn add(
        &self,
        moved: &[GuardDelta],
        _: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<GuardTotal>, StoreError> {
        let now = Instant::now();
        let mut counts = self.0.lock().unwrap();
        let add = |GuardDelta { key, sends, approvals }: &GuardDelta| {
            let fresh = (Rolling::default(), Rolling::default(), now);
            let (of_window, of_day, at) = counts.entry(key.clone()).or_insert(fresh);
            *of_window = of_window.later(now - *at, window);
            *of_day = of_day.later(now - *at, Activity::DAY);
            *at = now;
            for rolling in [&mut *of_window, of_day] {
                rolling.sends += sends;
                rolling.approvals += approvals;
            }
            GuardTotal { key: key.clone(), window: *of_window, day: *of_day, allowed: false }
        };
        Ok(moved.iter().map(add).collect())
    }
}

/// A source of messages.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    name: &'static str,
    /// Prefixes of numbers, each with its region and the number of digits that follow.
    numbers: &'static [(&'static str, &'static str, u32)],
    /// Messages per minute, for each second.
    rate: fn(u64) -> u64,
    /// Approvals per hundred messages.
    approved: u64,
    /// The total number of messages.
    most: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Outcome {
    sent: u64,
    blocked: u64,
}

/// Mobile numbers of Germany.
const GERMANY: &[(&str, &str, u32)] = &[("4915", "DE", 9), ("4916", "DE", 9), ("4917", "DE", 9)];
/// One operator of a small country.
const ESTONIA: &[(&str, &str, u32)] = &[("3725", "EE", 6)];
const ONE_PREFIX: &[(&str, &str, u32)] = &[("2327612", "SL", 4)];
const ONE_RANGE: &[(&str, &str, u32)] = &[("23276", "SL", 6)];
const SIERRA_LEONE: &[(&str, &str, u32)] = &[
    ("23225", "SL", 6),
    ("23230", "SL", 6),
    ("23231", "SL", 6),
    ("23233", "SL", 6),
    ("23234", "SL", 6),
    ("23275", "SL", 6),
    ("23276", "SL", 6),
    ("23277", "SL", 6),
    ("23278", "SL", 6),
    ("23279", "SL", 6),
    ("23288", "SL", 6),
    ("23299", "SL", 6),
];
const EVERYWHERE: &[(&str, &str, u32)] = &[
    ("4366", "AT", 8),
    ("3247", "BE", 7),
    ("3598", "BG", 8),
    ("4179", "CH", 7),
    ("4206", "CZ", 8),
    ("4520", "DK", 6),
    ("3725", "EE", 6),
    ("346", "ES", 8),
    ("3584", "FI", 8),
    ("336", "FR", 8),
    ("447", "GB", 9),
    ("3069", "GR", 8),
    ("3859", "HR", 7),
    ("3620", "HU", 7),
    ("3538", "IE", 8),
    ("393", "IT", 9),
    ("3706", "LT", 7),
    ("3712", "LV", 7),
    ("316", "NL", 8),
    ("479", "NO", 7),
    ("485", "PL", 8),
    ("3519", "PT", 8),
    ("407", "RO", 8),
    ("467", "SE", 8),
    ("4219", "SK", 8),
    ("905", "TR", 9),
    ("3809", "UA", 8),
    ("2547", "KE", 8),
    ("2348", "NG", 9),
    ("277", "ZA", 8),
    ("918", "IN", 9),
    ("628", "ID", 9),
    ("639", "PH", 9),
    ("849", "VN", 8),
    ("668", "TH", 8),
    ("5511", "BR", 9),
    ("5215", "MX", 9),
    ("573", "CO", 9),
    ("519", "PE", 8),
    ("549", "AR", 10),
];

const ALL: u64 = u64::MAX;

const fn honest(
    numbers: &'static [(&'static str, &'static str, u32)],
    rate: fn(u64) -> u64,
) -> Traffic {
    Traffic { name: "honest", numbers, rate, approved: 60, most: ALL }
}

const fn pump(
    numbers: &'static [(&'static str, &'static str, u32)],
    rate: fn(u64) -> u64,
) -> Traffic {
    Traffic { name: "pump", numbers, rate, approved: 0, most: 3_000 }
}

/// Runs `traffic` for a number of seconds through a number of processes, which flush each second.
/// Approvals follow 10 to 60 seconds after their messages.
async fn run(
    seconds: u64,
    processes: usize,
    traffic: &[Traffic],
) -> HashMap<&'static str, Outcome> {
    let shared = Shared::default();
    let rule = GuardRule::parse("adaptive", GuardMode::Enforce).unwrap();
    let guards: Vec<(Arc<Guard>, FlushGuard<Shared>)> = (0..processes)
        .map(|_| {
            let guard = Arc::new(Guard::new(vec![rule], WINDOW));
            (Arc::clone(&guard), FlushGuard::new(guard, shared.clone()))
        })
        .collect();
    let mut rng = StdRng::seed_from_u64(7);
    let mut outcomes: HashMap<&'static str, Outcome> = HashMap::new();
    let mut approvals: BinaryHeap<Reverse<(u64, PhoneNumber, Region)>> = BinaryHeap::new();
    let mut owed = vec![0; traffic.len()];
    let mut asked = vec![0; traffic.len()];
    for second in 0..seconds {
        while approvals.peek().is_some_and(|Reverse((at, ..))| *at <= second) {
            let Reverse((_, phone, region)) = approvals.pop().unwrap();
            guards[rng.random_range(0..processes)].0.approved(Origin::V1, &phone, Some(region));
        }
        for (place, source) in traffic.iter().enumerate() {
            owed[place] += (source.rate)(second);
            while owed[place] >= 60 && asked[place] < source.most {
                owed[place] -= 60;
                asked[place] += 1;
                let (start, region, digits) =
                    source.numbers[rng.random_range(0..source.numbers.len())];
                let rest = rng.random_range(0..10_u64.pow(digits));
                let phone: PhoneNumber =
                    format!("{start}{rest:0digits$}", digits = usize::try_from(digits).unwrap())
                        .parse()
                        .unwrap();
                let region: Region = region.parse().unwrap();
                let guard = &guards[rng.random_range(0..processes)].0;
                let outcome = outcomes.entry(source.name).or_default();
                match guard.decide(Origin::V1, &phone, Some(region)) {
                    Admission::Passed(permit) => {
                        permit.sent(VerificationId::NIL);
                        outcome.sent += 1;
                        if rng.random_range(0..100) < source.approved {
                            let after = rng.random_range(10..=60);
                            approvals.push(Reverse((second + after, phone, region)));
                        }
                    }
                    Admission::Blocked => outcome.blocked += 1,
                }
            }
        }
        for (_, flush) in &guards {
            flush.execute().await.unwrap();
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    outcomes
}

#[tokio::test(start_paused = true)]
async fn an_honest_service_of_any_size_passes() {
    let cases: &[(&str, u64, usize, Traffic)] = &[
        ("a few a day", 8 * HOUR, 1, honest(ESTONIA, |_| 1)),
        ("grows to 100 a minute", HOUR, 1, honest(GERMANY, |at| (at / 18).min(100))),
        ("the same in a small country", HOUR, 1, honest(ESTONIA, |at| (at / 18).min(100))),
        ("the same, of three processes", HOUR, 3, honest(GERMANY, |at| (at / 18).min(100))),
        ("begins with 1,200 a minute", 10 * MINUTE, 1, honest(GERMANY, |_| 1_200)),
        ("grows to 6,000 a minute", 6 * MINUTE, 2, honest(GERMANY, |at| (at * 20).min(6_000))),
        ("is known in forty countries", HOUR, 1, honest(EVERYWHERE, |_| 300)),
        (
            "a burst of fifty times as many",
            6 * HOUR + 5 * MINUTE,
            1,
            honest(GERMANY, |at| if at < 6 * HOUR { 40 } else { 2_000 }),
        ),
        (
            "of one firm, whose numbers share a prefix",
            HOUR,
            1,
            honest(&[("4915112", "DE", 4)], |at| (at / 18).min(100)),
        ),
    ];
    for (case, seconds, processes, traffic) in cases {
        let outcome = run(*seconds, *processes, &[*traffic]).await["honest"];
        assert_eq!(outcome.blocked, 0, "{case}: {outcome:?}");
        assert!(outcome.sent > 20, "{case}: {outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pumper_is_stopped_within_a_few_hundred_messages() {
    let flood = |numbers| pump(numbers, |_| 30_000);
    let farm = Traffic { approved: 10, ..pump(ONE_PREFIX, |_| 600) };
    let cases: &[(&str, u64, usize, Traffic, u64)] = &[
        ("one prefix", 2 * MINUTE, 1, flood(ONE_PREFIX), 100),
        ("one range", 2 * MINUTE, 1, flood(ONE_RANGE), 350),
        ("one country", 2 * MINUTE, 1, flood(SIERRA_LEONE), 550),
        ("forty countries", 2 * MINUTE, 1, flood(EVERYWHERE), 520),
        ("checks one in ten", 10 * MINUTE, 1, farm, 400),
        ("one a second", 50 * MINUTE, 1, pump(ONE_PREFIX, |_| 60), 100),
        ("five a minute, all day", 24 * HOUR, 1, pump(ONE_PREFIX, |_| 5), 310),
        ("a country, ten a minute, all day", 24 * HOUR, 1, pump(SIERRA_LEONE, |_| 10), 1_700),
        // A process does not know what the others passed since the last flush, one second ago.
        ("through four processes", 2 * MINUTE, 4, pump(ONE_PREFIX, |_| 6_000), 200),
    ];
    for (case, seconds, processes, traffic, most) in cases {
        let outcome = run(*seconds, *processes, &[*traffic]).await["pump"];
        assert!(outcome.sent <= *most, "{case}: {outcome:?}");
        assert!(outcome.blocked > 1_000, "{case}: {outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn bursts_with_idle_hours_between_them_are_bounded_by_the_day() {
    const EACH: u64 = 125 * MINUTE;
    // Other traffic keeps the flushes going.
    let users = honest(ESTONIA, |_| 1);
    let cases: &[(&str, Traffic, u64)] = &[
        ("one prefix", pump(ONE_PREFIX, |at| if at % EACH == 0 { 12_000 } else { 0 }), 310),
        ("a country", pump(SIERRA_LEONE, |at| if at % EACH == 0 { 60_000 } else { 0 }), 1_700),
    ];
    for (case, bursts, most) in cases {
        let outcomes = run(24 * HOUR, 1, &[users, Traffic { most: ALL, ..*bursts }]).await;

        assert!(outcomes["pump"].sent <= *most, "{case}: {outcomes:?}");
        assert_eq!(outcomes["honest"].blocked, 0, "{case}: {outcomes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn users_of_a_pumped_service_pass() {
    const ELEVEN_PREFIXES: &[(&str, &str, u32)] = &[
        ("4915112", "DE", 4),
        ("4915234", "DE", 4),
        ("4915356", "DE", 4),
        ("4915578", "DE", 4),
        ("4916090", "DE", 4),
        ("4916213", "DE", 4),
        ("4916345", "DE", 4),
        ("4917067", "DE", 4),
        ("4917189", "DE", 4),
        ("4917324", "DE", 4),
        ("4917946", "DE", 4),
    ];
    for (case, rate) in [("small", (|_| 10) as fn(u64) -> u64), ("large", |_| 600)] {
        let users = honest(GERMANY, rate);
        let attack = pump(ELEVEN_PREFIXES, |at| if at < 20 * MINUTE { 0 } else { 3_000 });

        let outcomes = run(40 * MINUTE, 1, &[users, attack]).await;

        let (users, attack) = (outcomes["honest"], outcomes["pump"]);
        assert!(attack.sent <= 1_200, "{case}: {attack:?}");
        // The blocked users have numbers in a pumped prefix, or in ranges without an approval yet.
        assert!(users.blocked * 50 <= users.sent, "{case}: {users:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefix_is_open_again_two_hours_after_the_attack() {
    let attack = pump(ONE_PREFIX, |at| if at < MINUTE { 30_000 } else { 0 });
    let later = honest(ONE_PREFIX, |at| if at < 2 * HOUR + MINUTE { 0 } else { 10 });

    let outcomes = run(3 * HOUR, 1, &[attack, later]).await;

    assert_eq!(outcomes["pump"].sent, 100);
    assert_eq!(outcomes["honest"].blocked, 0, "{outcomes:?}");
}
