//! The messages that the SMSC receives, and the outcomes of its answers.

use futures_util::future::join_all;
use smpp34::SmppError;
use tokio::time::Instant;

use super::{smsc::Smsc, *};

#[tokio::test]
async fn an_accepted_message_has_the_reference_of_the_smsc() {
    let smsc = Smsc::start().await;
    smsc.give_ids(&["00ABc1"]);
    let (gateway, _sink) = listening(smsc.settings());

    let accepted = gateway.send(&sms("Code 123456")).await.unwrap();

    let expected = Accepted { reference: Some("abc1".into()), receipts_by_reference: true };
    assert_eq!(accepted, expected);
    let submit = smsc.received().remove(0);
    assert_eq!(submit.short_message, b"Code 123456");
    assert_eq!((submit.source_addr.as_str(), submit.source_addr_ton), ("Shop", 5));
    assert_eq!((submit.destination_addr.as_str(), submit.dest_addr_ton), (testing::PHONE, 1));
    assert_eq!((submit.data_coding, submit.registered_delivery), (0, 1));
    assert_eq!(submit.validity_period, "000000000500000R");
    assert!(!gateway.deduplicates());
}

#[tokio::test]
async fn without_a_listener_no_receipt_is_asked_for() {
    let smsc = Smsc::start().await;
    let gateway = deaf(smsc.settings());

    let accepted = gateway.send(&sms("a")).await.unwrap();

    assert!(!accepted.receipts_by_reference);
    assert_eq!(smsc.received()[0].registered_delivery, 0);
}

#[tokio::test]
async fn long_and_cyrillic_texts_arrive_in_numbered_parts() {
    let smsc = Smsc::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    gateway.send(&sms(&"ж".repeat(71))).await.unwrap();
    let accepted = gateway.send(&sms(&"a".repeat(161))).await.unwrap();

    let received = smsc.received();
    let codings: Vec<_> = received.iter().map(|it| (it.esm_class, it.data_coding)).collect();
    assert_eq!(codings, [(0x40, 8), (0x40, 8), (0x40, 0), (0x40, 0)]);
    let text: Vec<u16> = smsc.texts()[..2]
        .iter()
        .flat_map(|octets| octets[6..].chunks(2))
        .map(|unit| u16::from_be_bytes([unit[0], unit[1]]))
        .collect();
    assert_eq!(String::from_utf16(&text).unwrap(), "ж".repeat(71));
    assert_eq!(received.iter().map(|it| it.registered_delivery).collect::<Vec<_>>(), [0, 1, 0, 1]);
    assert_eq!(accepted.reference.as_deref(), Some("id-3"));
}

#[tokio::test]
async fn each_refusal_of_the_smsc_has_its_class() {
    let smsc = Smsc::start().await;
    let (gateway, _sink) = listening(smsc.settings());
    let cases = [
        (SmppError::ESME_RTHROTTLED, OutcomeClass::Throttled),
        (SmppError::ESME_RMSGQFUL, OutcomeClass::Throttled),
        (SmppError::ESME_RINVDSTADR, OutcomeClass::Rejected),
        (SmppError::ESME_RINVSRCADR, OutcomeClass::Misconfigured),
        (SmppError::ESME_RSUBMITFAIL, OutcomeClass::Unroutable),
        (SmppError::ESME_RSYSERR, OutcomeClass::Unavailable),
    ];

    for (number, (error, expected)) in cases.into_iter().enumerate() {
        smsc.refuse(number, error);
        let outcome = gateway.send(&sms("a")).await;
        assert_eq!(class(&outcome), expected, "{error:?}");
    }
}

#[tokio::test]
async fn a_part_that_is_refused_after_another_was_accepted_is_ambiguous() {
    let smsc = Smsc::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    smsc.refuse(1, SmppError::ESME_RTHROTTLED);
    let second = gateway.send(&sms(&"a".repeat(400))).await;
    smsc.refuse(2, SmppError::ESME_RTHROTTLED);
    let first = gateway.send(&sms(&"a".repeat(400))).await;

    let text = "1 of 3 parts accepted, then throttled: command_status 0x58".to_owned();
    assert_eq!(second, Err(SendError::Ambiguous(text)));
    assert_eq!(class(&first), OutcomeClass::Throttled);
    // After a refusal no further part was sent.
    assert_eq!(smsc.received().len(), 3);
}

#[tokio::test]
async fn answers_that_take_time_overlap() {
    let smsc = Smsc::start().await;
    smsc.wait_before_answers(Duration::from_millis(100));
    let (gateway, _sink) = listening(SmppSettings { window: 50, ..smsc.settings() });
    let begun = Instant::now();

    let message = sms("a");
    let outcomes = join_all((0..200).map(|_| gateway.send(&message))).await;

    assert!(outcomes.iter().all(Result::is_ok));
    // One after the other they would take 20 s, and four times 100 ms at best.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[tokio::test]
async fn no_more_messages_are_unanswered_than_the_window_holds() {
    let smsc = Smsc::start().await;
    smsc.wait_before_answers(AMPLE);
    let settings = SmppSettings { window: 2, timeout: SHORT * 3, ..smsc.settings() };
    let (gateway, _sink) = listening(settings);

    let message = sms("a");
    let outcomes = join_all((0..3).map(|_| gateway.send(&message))).await;

    let mut details: Vec<_> =
        outcomes.iter().map(|it| it.as_ref().unwrap_err().to_string()).collect();
    details.sort();
    let lost = "ambiguous: the SMSC took the message and did not answer";
    let full = "unavailable: the window is full of unanswered messages";
    assert_eq!(details, [lost, lost, full]);
    assert_eq!(smsc.received().len(), 2);
}

#[tokio::test]
async fn a_gateway_keeps_as_many_connections_as_it_is_told() {
    let smsc = Smsc::start().await;
    smsc.wait_before_answers(SHORT);
    let settings = SmppSettings { window: 1, connections: 3, ..smsc.settings() };
    let (gateway, _sink) = listening(settings);
    within(async {
        while smsc.sessions() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    let message = sms("a");
    let begun = Instant::now();
    let outcomes = join_all((0..3).map(|_| gateway.send(&message))).await;

    assert!(outcomes.iter().all(Result::is_ok));
    assert!(begun.elapsed() < SHORT * 3, "each took a connection of its own");
}

#[tokio::test]
async fn a_bind_that_is_refused_says_why() {
    let smsc = Smsc::start().await;
    let wrong = SmppSettings { password: Secret::of("wrong"), ..smsc.settings() };
    let outcome = deaf(wrong).send(&sms("a")).await;
    let text = "the bind was refused with command_status 0x0E".to_owned();
    assert_eq!(outcome, Err(SendError::Misconfigured(text)));

    smsc.refuse_bind(Some(SmppError::ESME_RSYSERR));
    let outcome = deaf(smsc.settings()).send(&sms("a")).await;
    assert_eq!(class(&outcome), OutcomeClass::Unavailable);
}

#[tokio::test]
async fn without_an_smsc_the_gateway_is_unavailable_until_there_is_one() {
    let smsc = Smsc::start().await;
    smsc.refuse_bind(Some(SmppError::ESME_RINVPASWD));
    let (gateway, _sink) = listening(smsc.settings());
    assert_eq!(class(&gateway.send(&sms("a")).await), OutcomeClass::Misconfigured);

    smsc.refuse_bind(None);

    within(async {
        while gateway.send(&sms("a")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn outcomes_and_debug_tell_no_number_and_no_code() {
    let smsc = Smsc::start().await;
    let (gateway, _sink) = listening(smsc.settings());
    smsc.refuse(0, SmppError::ESME_RINVDSTADR);

    let outcome = gateway.send(&testing::sms()).await;

    testing::assert_tells_nothing(&format!("{outcome:?} {gateway:?}"));
    assert!(!format!("{gateway:?}").contains("secret"));
}
