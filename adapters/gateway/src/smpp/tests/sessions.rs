//! Sessions that end, break, stall or carry what is not SMPP.

use smpp34::deliver_sm;

use super::{
    scripted::{Peer, Scripted, octets, response},
    *,
};
use crate::smpp::pdu;

const LOST: &str = "the SMSC took the message and did not answer";

/// Sends an SMS while the SMSC does something.
async fn sending(
    gateway: &SmppGateway,
    smsc: impl Future<Output = ()>,
) -> Result<Accepted, SendError> {
    let message = sms("a");
    tokio::join!(gateway.send(&message), smsc).0
}

async fn eventually_accepted(gateway: &SmppGateway) {
    within(async {
        while gateway.send(&sms("a")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_leaves_the_outcome_open() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    let outcome = sending(&gateway, async {
        let mut peer = smsc.bound().await;
        peer.expect(pdu::SUBMIT_SM).await;
    })
    .await;

    assert_eq!(outcome, Err(SendError::Ambiguous(LOST.to_owned())));
}

#[tokio::test]
async fn a_connection_lost_after_the_answer_changes_nothing() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    let outcome = sending(&gateway, async {
        smsc.bound().await.accept_message("7").await;
    })
    .await;

    assert_eq!(outcome.unwrap().reference.as_deref(), Some("7"));
}

#[tokio::test]
async fn a_connection_lost_between_two_messages_leaves_the_second_unsent() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());
    let first = sending(&gateway, async { smsc.bound().await.accept_message("7").await }).await;
    assert!(first.is_ok());
    // The end of the connection has arrived when this one fails.
    let later = within(async {
        loop {
            match gateway.send(&sms("a")).await {
                Err(SendError::Ambiguous(_)) => tokio::task::yield_now().await,
                other => return other,
            }
        }
    });

    assert_eq!(class(&later.await), OutcomeClass::Unavailable);
}

#[tokio::test]
async fn a_gateway_connects_again_after_a_loss() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());
    drop(smsc.bound().await);

    let ((), peer) = tokio::join!(eventually_accepted(&gateway), async {
        let mut peer = smsc.bound().await;
        peer.accept_message("7").await;
        peer
    });

    drop(peer);
}

#[tokio::test]
async fn what_arrives_behind_the_bind_is_read() {
    let smsc = Scripted::start().await;
    let (_gateway, sink) = listening(smsc.settings());
    let mut peer = Peer::new(smsc.accept().await);

    peer.accept_bind(
        &[receipt("id:7 stat:DELIVRD"), octets(pdu::ENQUIRE_LINK, 0, 9, b"")].concat(),
    )
    .await;

    let alive = peer.expect(pdu::ENQUIRE_LINK | pdu::RESPONSE).await;
    assert_eq!((alive.sequence_number, alive.command_status), (9, 0));
    peer.expect(pdu::DELIVER_SM | pdu::RESPONSE).await;
    assert_eq!(sink.next().await.1, "7");
}

#[tokio::test]
async fn an_answer_may_arrive_octet_by_octet() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    let outcome = sending(&gateway, async {
        let mut peer = smsc.bound().await;
        peer.stream.set_nodelay(true).unwrap();
        let sequence = peer.expect(pdu::SUBMIT_SM).await.sequence_number;
        for octet in response(pdu::SUBMIT_SM, 0, sequence, b"7\0") {
            peer.write(&[octet]).await;
            tokio::task::yield_now().await;
        }
    })
    .await;

    assert_eq!(outcome.unwrap().reference.as_deref(), Some("7"));
}

#[tokio::test]
async fn answers_may_come_in_any_order_and_without_an_id() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());
    let (first, second) = (sms("a"), sms("b"));

    let (first, second, ()) = tokio::join!(gateway.send(&first), gateway.send(&second), async {
        let mut peer = smsc.bound().await;
        let first = peer.expect(pdu::SUBMIT_SM).await.sequence_number;
        let second = peer.expect(pdu::SUBMIT_SM).await.sequence_number;
        peer.write(&response(pdu::SUBMIT_SM, 0, 0x7777, b"stray\0")).await;
        peer.write(&response(pdu::SUBMIT_SM, 0x58, second, b"")).await;
        peer.write(&response(pdu::SUBMIT_SM, 0, first, b"\0")).await;
    });

    let expected = Accepted { reference: None, receipts_by_reference: false };
    let mut outcomes = [first, second];
    outcomes.sort_by_key(Result::is_err);
    assert_eq!(outcomes[0], Ok(expected));
    assert_eq!(class(&outcomes[1]), OutcomeClass::Throttled);
}

#[tokio::test]
async fn a_generic_nack_is_a_refusal() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    let outcome = sending(&gateway, async {
        let mut peer = smsc.bound().await;
        let sequence = peer.expect(pdu::SUBMIT_SM).await.sequence_number;
        peer.write(&octets(pdu::GENERIC_NACK, 0, sequence, b"")).await;
    })
    .await;

    assert_eq!(outcome, Err(SendError::Misconfigured("command_status 0x03".to_owned())));
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_its_place_in_the_window_taken() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(SmppSettings { window: 1, ..smsc.settings() });
    let mut peer = smsc.bound().await;
    let message = sms("a");
    assert!(timeout(SHORT, gateway.send(&message)).await.is_err());
    let sequence = peer.expect(pdu::SUBMIT_SM).await.sequence_number;

    let (outcome, ()) = tokio::join!(gateway.send(&message), async {
        assert!(timeout(SHORT, peer.read()).await.is_err(), "the window was full");
        peer.write(&response(pdu::SUBMIT_SM, 0, sequence, b"1\0")).await;
        peer.accept_message("2").await;
    });

    assert_eq!(outcome.unwrap().reference.as_deref(), Some("2"));
}

#[tokio::test]
async fn the_smsc_may_unbind_after_its_answers() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    let outcome = sending(&gateway, async {
        let mut peer = smsc.bound().await;
        let sequence = peer.expect(pdu::SUBMIT_SM).await.sequence_number;
        peer.write(&octets(pdu::UNBIND, 0, 5, b"")).await;
        peer.write(&response(pdu::SUBMIT_SM, 0, sequence, b"7\0")).await;
        let unbound = peer.expect(pdu::UNBIND | pdu::RESPONSE).await;
        assert_eq!((unbound.sequence_number, unbound.command_status), (5, 0));
        assert!(peer.read().await.is_none(), "the gateway ends the connection");
    })
    .await;

    assert_eq!(outcome.unwrap().reference.as_deref(), Some("7"));
    assert_eq!(class(&gateway.send(&sms("a")).await), OutcomeClass::Unavailable);
    let mut peer = smsc.bound().await;
    tokio::join!(eventually_accepted(&gateway), peer.accept_message("8"));
}

#[tokio::test]
async fn an_smsc_that_unbinds_without_its_answers_leaves_the_outcome_open() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    let outcome = sending(&gateway, async {
        let mut peer = smsc.bound().await;
        peer.expect(pdu::SUBMIT_SM).await;
        peer.write(&octets(pdu::UNBIND, 0, 5, b"")).await;
        peer.expect(pdu::UNBIND | pdu::RESPONSE).await;
        assert!(peer.read().await.is_none());
    })
    .await;

    assert_eq!(class(&outcome), OutcomeClass::Ambiguous);
}

#[tokio::test]
async fn a_gateway_that_is_dropped_unbinds() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());
    let mut peer = smsc.bound().await;
    let message = sms("a");
    tokio::join!(gateway.send(&message), peer.accept_message("7")).0.unwrap();

    drop(gateway);

    let unbind = peer.expect(pdu::UNBIND).await;
    peer.write(&response(pdu::UNBIND, 0, unbind.sequence_number, b"")).await;
    assert!(peer.read().await.is_none());
}

#[tokio::test]
async fn a_silent_smsc_is_asked_and_then_given_up() {
    let smsc = Scripted::start().await;
    let settings =
        SmppSettings { enquire_link_interval: SHORT, timeout: SHORT * 2, ..smsc.settings() };
    let (_gateway, _sink) = listening(settings);
    let mut peer = smsc.bound().await;

    let asked = peer.expect(pdu::ENQUIRE_LINK).await.sequence_number;
    peer.write(&response(pdu::ENQUIRE_LINK, 0, asked, b"")).await;
    let again = peer.expect(pdu::ENQUIRE_LINK).await.sequence_number;

    assert_ne!(asked, again);
    assert!(peer.read().await.is_none(), "the second one was not answered");
    smsc.bound().await;
}

#[tokio::test]
async fn garbage_ends_the_session_and_not_the_gateway() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());
    let mut peer = smsc.bound().await;

    peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;

    let nack = peer.expect(pdu::GENERIC_NACK).await;
    assert_eq!((nack.command_status, nack.sequence_number), (0x02, 0));
    assert!(peer.read().await.is_none());
    let mut peer = smsc.bound().await;
    tokio::join!(eventually_accepted(&gateway), peer.accept_message("8"));
}

#[tokio::test]
async fn garbage_instead_of_a_bind_response_is_no_bind() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());

    let outcome = sending(&gateway, async {
        let mut peer = Peer::new(smsc.accept().await);
        peer.write(b"SSH-2.0-OpenSSH_9.2\r\n").await;
    })
    .await;

    assert_eq!(class(&outcome), OutcomeClass::Unavailable);
}

#[tokio::test]
async fn an_unknown_request_is_refused_and_the_session_goes_on() {
    let smsc = Scripted::start().await;
    let (gateway, _sink) = listening(smsc.settings());
    let mut peer = smsc.bound().await;

    peer.write(&octets(0x0777, 0, 3, b"?")).await;
    let nack = peer.expect(pdu::GENERIC_NACK).await;
    assert_eq!((nack.command_status, nack.sequence_number), (0x03, 3));
    peer.write(&octets(pdu::DELIVER_SM, 0, 4, b"no delivery")).await;
    let refused = peer.expect(pdu::DELIVER_SM | pdu::RESPONSE).await;
    assert_eq!((refused.command_status, refused.sequence_number), (0x65, 4));
    peer.write(&octets(pdu::ALERT_NOTIFICATION, 0, 5, b"\0\0\0\0\0\0")).await;
    peer.write(&octets(0x8000_0777, 0, 6, b"")).await;

    let message = sms("a");
    let (outcome, ()) = tokio::join!(gateway.send(&message), peer.accept_message("7"));
    assert!(outcome.is_ok());
}

/// A receipt in a `deliver_sm` of our own making.
fn receipt(text: &str) -> Vec<u8> {
    let (none, text) = (String::new, text.as_bytes().to_vec());
    deliver_sm::new(
        3,
        none(),
        1,
        1,
        testing::PHONE.to_owned(),
        5,
        0,
        "Shop".to_owned(),
        4,
        0,
        0,
        none(),
        none(),
        0,
        0,
        0,
        0,
        text,
    )
    .encode()
}
