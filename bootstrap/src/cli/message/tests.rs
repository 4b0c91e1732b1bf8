use std::time::SystemTime;

use adapters_persistence::{EndedCall, LedgerEntry, MessageStory, WaitingMessage};
use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn parse(line: &str) -> Result<Args, clap::Error> {
    Line::try_parse_from(format!("message {line}").split_whitespace()).map(|line| line.args)
}

const ID: &str = "ver_0193ad2f6c4e7b5f8e2a4d1c9b8a7f00";

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn message(send: u8) -> MessageStory {
    MessageStory {
        id: ID.parse::<VerificationId>().unwrap().message(send),
        waiting: None,
        entries: Vec::new(),
        extra: None,
        awaited: None,
        dead_letters: Vec::new(),
    }
}

fn sent() -> MessageStory {
    let call = |gateway: &str, outcome: &str, seconds| EndedCall {
        gateway: gateway.to_owned(),
        outcome: outcome.to_owned(),
        detail: "HTTP 200".to_owned(),
        called_at: Some(at(seconds)),
        ended_at: Some(at(seconds) + Duration::from_millis(350)),
    };
    let entry = LedgerEntry {
        group: "1".to_owned(),
        topic: "message".to_owned(),
        partition: 3,
        phone: "79991234567".parse().unwrap(),
        state: "sent".to_owned(),
        accepted_at: at(10),
        admitted_at: Some(at(11)),
        expires_at: at(600),
        due_at: at(11),
        called_at: Some(at(14)),
        ended_at: Some(at(15)),
        gateway: Some("second".to_owned()),
        reference: Some("ref-1".to_owned()),
        detail: None,
        delivered_at: Some(at(20)),
        undelivered_at: None,
        calls: vec![call("main", "unavailable", 12), call("second", "accepted", 14)],
    };
    MessageStory { entries: vec![entry], ..message(1) }
}

fn waiting() -> MessageStory {
    let waiting = WaitingMessage {
        phone: "79991234567".parse().unwrap(),
        accepted_at: at(30),
        expires_at: at(600),
        is_published: true,
    };
    MessageStory { waiting: Some(waiting), dead_letters: vec![7], ..message(2) }
}

fn story() -> Story {
    Story { verification: None, messages: vec![waiting(), sent()], events: Vec::new() }
}

#[test]
fn an_id_is_of_a_verification_or_of_a_message() {
    let verification: VerificationId = ID.parse().unwrap();
    for text in [ID, "0193ad2f-6c4e-7b5f-8e2a-4d1c9b8a7f00", "0193ad2f6c4e7b5f8e2a4d1c9b8a7f00"] {
        assert_eq!(parse(text).unwrap().id, Some(Id::Verification(verification)), "{text}");
    }
    let id = parse("0193ad2f-6c4e-7b5f-8e2a-4d1c9b8a7f02").unwrap().id;
    assert_eq!(id, Some(Id::Message(verification.message(2))));
    for bad in ["", "ver_1", "7", "0193ad2f --phone +79991234567"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn steps_are_in_the_order_of_their_times_and_what_goes_on_is_last() {
    let text = shown(&[story()], Form::Tabs);

    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let steps: Vec<(&str, &str)> = lines[1..].iter().map(|line| (line[2], line[3])).collect();
    assert_eq!(
        steps,
        [
            ("1", "accepted"),
            ("1", "taken over"),
            ("1", "called"),
            ("1", "called"),
            ("1", "sent"),
            ("1", "delivered"),
            ("2", "accepted"),
            ("2", "in transit"),
            ("2", "dead letter"),
        ]
    );
    assert_eq!(lines[3][1], "1970-01-01T00:00:12Z");
    assert_eq!(lines[3][4], "main: unavailable after 350 ms: HTTP 200");
    assert_eq!(lines[5][4], "the provider's id is ref-1");
    assert_eq!(lines[8][1], "-");
}

#[test]
fn every_form_masks_the_phone() {
    for form in [Form::Columns { colours: true }, Form::Tabs, Form::Json] {
        let text = shown(&[story()], form);

        assert!(!text.contains("79991234567"), "{text}");
        assert!(form == Form::Tabs || text.contains("+7999*****67"), "{text}");
    }
}

#[test]
fn json_has_the_calls_of_each_message() {
    let value: Value = serde_json::from_str(&shown(&[story()], Form::Json)).unwrap();

    let entry = &value[0]["messages"][1]["entries"][0];
    assert_eq!(entry["calls"][1]["outcome"], "accepted");
    assert_eq!(entry["delivered"], "1970-01-01T00:00:20Z");
    assert_eq!(value[0]["messages"][0]["waiting"]["place"], "in transit");
    assert_eq!(value[0]["verification"], Value::Null);
}

#[test]
fn unknown_id_says_where_it_was_looked_for_and_what_removes_it() {
    let day = Duration::from_secs(86_400);
    let retention = Retention { verifications: 30 * day, ledger: 7 * day };

    let text = unknown(Id::Verification(ID.parse().unwrap()), retention);

    for part in [ID, "the ledger", "30 days", "DELIVERY_RETENTION", "messager forget"] {
        assert!(text.contains(part), "{text}");
    }
    let looked = Looked { rows: 10_000, everywhere: false };
    let none = PhoneStories { stories: Vec::new(), has_more: false, looked };
    let text = More::COMMAND.note(&"79991234567".parse().unwrap(), &none, retention);
    assert!(text.contains("only the newest 10000 rows were read"), "{text}");
    assert!(!text.contains("79991234567"), "{text}");
}
