use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn rule(text: &str) -> GuardRule {
    GuardRule::parse(text, GuardMode::Shadow).unwrap()
}

fn count(sends: u64, approvals: u64) -> GuardCount {
    GuardCount { sends, approvals }
}

/// The same counts in the window and in the day.
fn activity(sends: u64, approvals: u64) -> Activity {
    let count = count(sends, approvals);
    Activity { window: count, day: count, allowed: false }
}

#[test]
fn a_rule_is_written_as_it_is_parsed() {
    assert_eq!(rule("prefix:50:10").to_string(), "prefix:50:10:shadow");
    assert_eq!(rule("region:1000:5:enforce").to_string(), "region:1000:5:enforce");
    assert_eq!(rule("adaptive").to_string(), "adaptive:shadow");
    assert_eq!(rule("adaptive:enforce").to_string(), "adaptive:enforce");
    for bad in [
        "",
        "prefix",
        "prefix:50",
        "phone:50:10",
        "range:50:10",
        "world:50:10",
        "prefix:0:10",
        "prefix:50:0",
        "prefix:50:101",
        "prefix:50:10:off",
        "prefix:50:10:shadow:",
        "prefix:-1:10",
        "adaptive:off",
        "adaptive:50:10",
    ] {
        assert_eq!(GuardRule::parse(bad, GuardMode::Enforce), Err(InvalidGuardRule), "{bad}");
    }
}

#[test]
fn a_share_rule_fires_at_min_sends_and_below_its_percentage() {
    let test = rule("prefix:50:10").test;

    for (sends, approvals, fires) in [
        (49, 0, false),
        (50, 0, true),
        (50, 4, true),
        (50, 5, false),
        (1_000, 99, true),
        (1_000, 100, false),
        (50, u64::MAX, false),
    ] {
        let levels = Levels { prefix: activity(sends, approvals), ..Levels::default() };
        let fired = test.fires(&levels, World::default).is_some();
        assert_eq!(fired, fires, "{approvals} of {sends}");
    }
}

#[test]
fn an_approval_pays_for_four_unverified_messages() {
    for (sends, approvals, fires) in [
        (99, 0, false),
        (100, 0, true),
        (104, 1, false),
        (105, 1, true),
        (199, 20, false),
        (200, 20, true),
        (1_000_000, 200_000, false),
    ] {
        let prefix = activity(sends, approvals);
        let fired = Levels { prefix, ..Levels::default() }.fired(World::default).is_some();
        assert_eq!(fired, fires, "{approvals} of {sends}");
    }
}

#[test]
fn a_blocked_range_or_region_lets_parts_with_approvals_through() {
    let (idle, paying, owing) = (activity(0, 0), activity(14, 10), activity(3, 0));
    let range = activity(250, 0);
    let region = Some(activity(500, 0));
    for (levels, fires) in [
        (Levels { prefix: idle, range, region: None }, None),
        (Levels { prefix: paying, range, region: None }, None),
        (Levels { prefix: owing, range, region: None }, Some(GuardScope::Range)),
        (Levels { prefix: idle, range: idle, region }, None),
        (Levels { prefix: owing, range: paying, region }, None),
        (Levels { prefix: idle, range: owing, region }, Some(GuardScope::Region)),
    ] {
        assert_eq!(levels.fired(World::default), fires, "{levels:?}");
    }
}

#[test]
fn unpaid_messages_of_many_regions_add_up() {
    let world = |regions: u64, approvals: u64| {
        let mut world = World::default();
        (0..regions).for_each(|_| world.add(&activity(10, 0)));
        world.add(&activity(approvals, approvals));
        move || world
    };
    let to = |region| Levels { region: Some(region), ..Levels::default() };
    let (owing, paying) = (to(activity(10, 0)), to(activity(10, 4)));

    assert_eq!(owing.fired(world(49, 0)), None);
    assert_eq!(owing.fired(world(50, 0)), Some(GuardScope::World));
    assert_eq!(paying.fired(world(50, 0)), None);
    assert_eq!(owing.fired(world(50, 400)), None, "a twentieth of 400 more");
    assert_eq!(owing.fired(world(52, 400)), Some(GuardScope::World));
}

#[test]
fn the_limit_of_a_day_applies_although_each_window_passes() {
    let slow = |sends| Activity { window: count(10, 0), day: count(sends, 0), allowed: false };

    for (sends, fires) in [(299, false), (300, true)] {
        let levels = Levels { prefix: slow(sends), ..Levels::default() };
        assert_eq!(levels.fired(World::default).is_some(), fires, "{sends}");
    }
}

#[test]
fn the_approvals_of_a_day_pay_for_a_burst() {
    let burst = Activity { window: count(599, 0), day: count(1_000, 400), allowed: false };
    let region = |region| Levels { range: activity(9, 0), region: Some(region), ..<_>::default() };

    assert_eq!(region(burst).fired(World::default), None);
    let longer = Activity { window: count(600, 0), ..burst };
    assert_eq!(region(longer).fired(World::default), Some(GuardScope::Region));
}

#[test]
fn no_rule_fires_for_keys_that_an_operator_allows() {
    let allowed = Activity { allowed: true, ..activity(9_999, 0) };
    let levels = Levels { prefix: allowed, range: allowed, region: Some(allowed) };

    assert_eq!(levels.fired(World::default), None);
    assert_eq!(rule("region:1:100").test.fires(&levels, World::default), None);
}

#[test]
fn the_current_bucket_becomes_the_one_before() {
    let now = Rolling { sends: 10, approvals: 4, ..Rolling::default() };
    assert_eq!(now.over(HOUR), count(10, 4));

    let half = now.later(HOUR / 2, HOUR);
    assert_eq!(half.over(HOUR), count(10, 4), "the window still covers all");

    let next = half.later(HOUR, HOUR);
    assert_eq!((next.sends, next.sends_before, next.age), (0, 10, HOUR / 2));
    assert_eq!(next.over(HOUR), count(5, 2), "half of the bucket before");

    assert_eq!(next.later(HOUR / 2, HOUR).over(HOUR), count(0, 0));
    assert_eq!(now.later(3 * HOUR, HOUR), Rolling::default());
}
