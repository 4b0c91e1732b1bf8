use std::time::SystemTime;

use super::*;

fn overview() -> Overview {
    Overview {
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(60),
        accepted: 100,
        taken_over: 90,
        waiting: Many::default(),
        in_transit: Many::default(),
        open: Many { count: 4, oldest: Duration::from_secs(3) },
        calling: 1,
        dead_letters: 0,
        newest_dead_letter: Duration::ZERO,
        events: Many::default(),
        failed_events: 0,
        partitions: vec![PartitionState {
            group: "1".to_owned(),
            topic: "message".to_owned(),
            partition: 3,
            owner: None,
            epoch: 7,
            lease: Duration::ZERO,
            next_offset: Some(50),
            lag: None,
            behind: None,
        }],
        consumers: 0,
        errors: vec![BadEnd {
            at: SystemTime::UNIX_EPOCH,
            message: "0193ad2f-6c4e-7b5f-8e2a-4d1c9b8a7f01".parse().unwrap(),
            state: "failed".to_owned(),
            gateway: None,
            detail: "rejected: HTTP 400".to_owned(),
        }],
    }
}

fn shown() -> Shown {
    let now = Overview {
        accepted: 120,
        taken_over: 110,
        open: Many { count: 14, oldest: Duration::from_secs(300) },
        waiting: Many { count: COUNTED, oldest: Duration::from_secs(8_000) },
        ..overview()
    };
    let rates = Rates::between(&overview(), &now, Duration::from_secs(2));
    Shown { overview: now, rates, gateways: gateways::Gateways::none() }
}

#[test]
fn rates_are_those_since_the_last_look() {
    let rates = shown().rates;

    let expected = Rates { accepted: 10.0, taken_over: 10.0, ended: 5.0, read: 0.0 };
    assert_eq!(rates, expected);
}

#[test]
fn a_pipe_gets_tabs_and_a_terminal_says_what_is_wrong() {
    let text = shown().text(Form::Tabs);
    assert!(
        text.starts_with("what\tcount\tper second\tremark\naccepted\t120\t10.0\t-\n"),
        "{text}"
    );
    assert!(text.contains("waiting\t10000+\t-\tthe oldest for 2 h\n"), "{text}");

    let text = shown().text(Form::Columns { colours: false });
    for part in [
        "no consumer is running",
        "the oldest for 5 min, 1 are being called for",
        "1      message  3          -",
        "rejected: HTTP 400",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn json_has_numbers() {
    let value = shown().json();

    assert_eq!(value["per_second"]["accepted"], 10.0);
    assert_eq!(value["open"], json!({ "count": 14, "oldest_seconds": 300 }));
    assert_eq!(value["partitions"][0]["owner"], Value::Null);
    assert_eq!(value["errors"][0]["state"], "failed");
}
