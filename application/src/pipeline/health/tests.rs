use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use domain::PhoneNumber;

use super::*;
use crate::ports::MockGatewayHealth;

fn of(gateway: &str, region: &str) -> RegionalGateway {
    RegionalGateway { gateway: gateway.parse().unwrap(), region: region.parse().ok() }
}

fn measured(minute: u64, gateway: &str, region: &str, approved: u32) -> Measured {
    let counts = HealthCounts { sent: 100, approved, ..HealthCounts::default() };
    Measured { minute: Minute(minute), of: of(gateway, region), counts }
}

fn stored(gateway: &str, percent: u8, minutes_ago: u64, since: u64) -> StoredFactor {
    StoredFactor {
        of: of(gateway, "RU"),
        factor: Factor::from_percent(percent).unwrap(),
        age: Duration::from_secs(60 * minutes_ago),
        since: Minute(since),
    }
}

/// The changes as texts.
fn shown(judgements: &[Judgement]) -> Vec<String> {
    let shown = |Judgement { change: FactorChange { of, from, to }, .. }: &Judgement| {
        let region = of.region.as_ref().map_or("none", Region::as_str);
        format!("{} {region} {} {}", of.gateway, from.percent(), to.percent())
    };
    judgements.iter().map(shown).collect()
}

#[test]
fn gateway_is_compared_with_the_others_of_the_region() {
    let all = [
        measured(1, "a", "RU", 20),
        measured(1, "b", "RU", 60),
        // Fewer codes are approved there, for every gateway.
        measured(1, "a", "KZ", 20),
        measured(1, "b", "KZ", 22),
        measured(1, "a", "", 60),
        measured(1, "b", "", 20),
    ];

    assert_eq!(shown(&judge(&all, &[])), ["a RU 100 50", "b none 100 50"]);
}

#[test]
fn judgement_has_the_numbers_of_both_sides() {
    let all = [measured(1, "a", "RU", 20), measured(2, "a", "RU", 10), measured(1, "b", "RU", 60)];
    let all = [&all[..], &[measured(2, "c", "RU", 50)]].concat();

    let judgement = judge(&all, &[]).remove(0);

    assert_eq!((judgement.own.sent, judgement.own.approved), (200, 30));
    assert_eq!((judgement.others.sent, judgement.others.approved), (200, 110));
}

#[test]
fn only_minutes_since_the_change_count() {
    let bad = [1, 2, 3].map(|minute| measured(minute, "a", "RU", 10));
    let good = [4, 5].map(|minute| measured(minute, "a", "RU", 60));
    let others = [1, 2, 3, 4, 5].map(|minute| measured(minute, "b", "RU", 60));
    let all = [&bad[..], &good, &others].concat();

    let changed_later = judge(&all, &[stored("a", 50, 12, 4)]);
    let changed_earlier = judge(&all, &[stored("a", 50, 12, 1)]);

    assert_eq!(shown(&changed_later), ["a RU 50 100"]);
    assert_eq!(shown(&changed_earlier), ["a RU 50 25"]);
}

#[test]
fn factor_of_a_gateway_without_messages_rises() {
    assert_eq!(shown(&judge(&[], &[stored("a", 10, 29, 1)])), [""; 0]);
    assert_eq!(shown(&judge(&[], &[stored("a", 10, 30, 1)])), ["a RU 10 25"]);
}

fn region() -> RegionOf {
    Arc::new(|phone: &PhoneNumber| match phone.as_str().as_bytes()[0] {
        b'7' => "RU".parse().ok(),
        _ => None,
    })
}

fn message(gateway: &str, phone: &str, in_time: bool, approved: bool) -> SampledMessage {
    SampledMessage {
        gateway: gateway.parse().unwrap(),
        phone: phone.parse().unwrap(),
        reported: true,
        in_time,
        approved,
    }
}

#[tokio::test]
async fn messages_of_a_minute_are_counted_by_gateway_and_region() {
    let mut health = MockGatewayHealth::new();
    health.expect_claim().returning(|_| Ok(Some(Minute(7))));
    health.expect_sample().withf(|minute, _, _| *minute == Minute(7)).returning(|_, _, _| {
        Ok(vec![
            message("a", "79991234567", true, true),
            message("a", "79991234568", false, true),
            message("a", "0000000", true, false),
            message("b", "79991234567", false, false),
        ])
    });
    health.expect_record().once().returning(|_| Ok(()));

    let judged = JudgeGateways::new(health, region()).execute(false).await.unwrap();

    let counts = |it: &Measured| {
        let HealthCounts { sent, reported, in_time, approved } = it.counts;
        (it.of.clone(), [sent, reported, in_time, approved])
    };
    let expected =
        [(of("a", ""), [1, 1, 1, 0]), (of("a", "RU"), [2, 2, 1, 2]), (of("b", "RU"), [1, 1, 0, 0])];
    assert_eq!(judged.measured.iter().map(counts).collect::<Vec<_>>(), expected);
    assert_eq!(judged.changed, [], "factors are fixed");
}

#[tokio::test]
async fn minute_of_another_process_is_left_alone() {
    let mut health = MockGatewayHealth::new();
    health.expect_claim().once().returning(|_| Ok(None));

    let judged = JudgeGateways::new(health, region()).execute(true).await.unwrap();

    assert_eq!(judged, Judged::default());
}

#[tokio::test]
async fn change_that_another_process_made_first_is_not_reported() {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut health = MockGatewayHealth::new();
    health.expect_claim().returning(|_| Ok(Some(Minute(7))));
    health.expect_sample().returning(|_, _, _| Ok(Vec::new()));
    health.expect_measured().returning(|_| {
        let regions = ["RU", "KZ"];
        let of = |region| [measured(7, "a", region, 10), measured(7, "b", region, 60)];
        Ok(regions.into_iter().flat_map(of).collect())
    });
    health.expect_factors().returning(|| Ok(Vec::new()));
    let count = Arc::clone(&asked);
    health.expect_change().returning(move |change, pause| {
        assert_eq!(pause, FACTOR_PAUSE);
        count.fetch_add(1, Ordering::Relaxed);
        Ok(change.of.region == "RU".parse().ok())
    });

    let judged = JudgeGateways::new(health, region()).execute(true).await.unwrap();

    let changed = [FactorChange {
        of: of("a", "RU"),
        from: Factor::FULL,
        to: Factor::from_percent(50).unwrap(),
    }];
    assert_eq!((judged.changed, asked.load(Ordering::Relaxed)), (changed.to_vec(), 2));
}

/// A service with two gateways and a minute for each round. Gateway `b` has 60 of 100 codes approved,
/// and `a` so many as the test says, of as many messages as its factor leaves it.
#[derive(Clone)]
struct Simulation(Arc<Mutex<Simulated>>);

#[derive(Default)]
struct Simulated {
    minute: u64,
    measured: Vec<Measured>,
    /// The factor of `a`, and the minute of its change.
    factor: Option<(Factor, u64)>,
    approved: u32,
}

impl Simulation {
    fn percent(&self) -> u8 {
        self.0.lock().unwrap().factor.map_or(Factor::FULL, |it| it.0).percent()
    }

    /// Lets some minutes pass, and returns the factors of `a` that held in them.
    async fn pass(&self, minutes: u64, approved: u32) -> Vec<u8> {
        self.0.lock().unwrap().approved = approved;
        let mut percents = vec![self.percent()];
        for _ in 0..minutes {
            self.0.lock().unwrap().minute += 1;
            JudgeGateways::new(self.clone(), region()).execute(true).await.unwrap();
            percents.push(self.percent());
        }
        percents.dedup();
        percents
    }
}

impl GatewayHealth for Simulation {
    async fn claim(&self, _: Duration) -> Result<Option<Minute>, StoreError> {
        Ok(Some(Minute(self.0.lock().unwrap().minute - 3)))
    }

    async fn sample(
        &self,
        _: Minute,
        _: Duration,
        _: u32,
    ) -> Result<Vec<SampledMessage>, StoreError> {
        let simulated = self.0.lock().unwrap();
        // The factor of that minute.
        let percent = simulated.factor.map_or(100, |it| it.0.percent());
        let of = |gateway, sent: u32, approved| {
            (0..sent).map(move |n| message(gateway, "79991234567", true, n % 100 < approved))
        };
        let sent = u32::from(percent);
        Ok(of("a", sent, simulated.approved * sent / 100).chain(of("b", 100, 60)).collect())
    }

    async fn record(&self, measured: &[Measured]) -> Result<(), StoreError> {
        self.0.lock().unwrap().measured.extend_from_slice(measured);
        Ok(())
    }

    async fn measured(&self, period: Duration) -> Result<Vec<Measured>, StoreError> {
        let simulated = self.0.lock().unwrap();
        let begin = simulated.minute.saturating_sub(period.as_secs() / 60);
        let is_recent = |it: &&Measured| it.minute.0 >= begin;
        Ok(simulated.measured.iter().filter(is_recent).cloned().collect())
    }

    async fn factors(&self) -> Result<Vec<StoredFactor>, StoreError> {
        let simulated = self.0.lock().unwrap();
        let stored = |(factor, changed)| StoredFactor {
            of: of("a", "RU"),
            factor,
            age: Duration::from_secs(60 * (simulated.minute - changed)),
            since: Minute(changed + 1),
        };
        Ok(simulated.factor.map(stored).into_iter().collect())
    }

    async fn change(&self, change: &FactorChange, _: Duration) -> Result<bool, StoreError> {
        let mut simulated = self.0.lock().unwrap();
        assert_eq!(change.of, of("a", "RU"));
        simulated.factor = Some((change.to, simulated.minute));
        Ok(true)
    }
}

#[tokio::test]
async fn gateway_loses_messages_while_it_is_bad_and_gets_them_back_afterwards() {
    let simulation = Simulation(Arc::default());
    simulation.0.lock().unwrap().minute = 100;

    assert_eq!(simulation.pass(60, 58).await, [100], "nothing differs");
    assert_eq!(simulation.pass(5, 20).await[..], [100], "not for a handful of minutes");
    assert_eq!(simulation.pass(55, 20).await, [100, 50, 25, 10], "step by step");
    assert_eq!(simulation.pass(120, 20).await, [10], "it stays so");
    assert_eq!(simulation.pass(90, 60).await, [10, 25, 50, 100], "it has recovered");
}
