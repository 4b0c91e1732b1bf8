//! Receipts from the SMSC to the store, and their responses.

use smpp34::{Tlv, TlvTag};

use super::{smsc::Smsc, *};

const OK: u32 = 0;

#[tokio::test]
async fn a_receipt_is_stored_under_the_reference_of_the_message() {
    let smsc = Smsc::start().await;
    smsc.give_ids(&["00FF", "0A1b"]);
    let (gateway, sink) = listening(smsc.settings());
    let first = gateway.send(&sms("a")).await.unwrap().reference.unwrap();
    let second = gateway.send(&sms("a")).await.unwrap().reference.unwrap();

    let delivered = smsc.deliver("id:0A1b sub:001 dlvrd:001 stat:DELIVRD err:000 text:a").await;
    // The same number in decimal, with zeros before it.
    let failed = smsc.deliver("id:0000000255 sub:001 dlvrd:000 stat:UNDELIV err:001 text:a").await;

    assert_eq!((delivered.command_status(), failed.command_status()), (OK, OK));
    let (gateway, spellings, receipt) = sink.next().await;
    assert_eq!((gateway.as_str(), receipt), ("main", Receipt::Delivered));
    assert!(spellings.contains(&first), "{spellings:?}");
    let (_, spellings, receipt) = sink.next().await;
    assert_eq!(receipt, Receipt::Undelivered);
    assert!(spellings.contains(&second), "{spellings:?}");
}

#[tokio::test]
async fn a_receipt_may_be_in_parameters_alone() {
    let smsc = Smsc::start().await;
    let (_gateway, sink) = listening(smsc.settings());
    let parameters = vec![
        Tlv::from_c_string(TlvTag::ReceiptedMessageId, "id-0"),
        Tlv::from_u8(TlvTag::MessageStateTlv, 2),
    ];

    let response = smsc.deliver_with(0, "", parameters).await;

    assert_eq!(response.command_status(), OK);
    let (_, spellings, receipt) = sink.next().await;
    assert_eq!((spellings, receipt), (vec!["id-0".to_owned()], Receipt::Delivered));
}

#[tokio::test]
async fn a_receipt_that_cannot_be_stored_is_to_be_repeated() {
    let smsc = Smsc::start().await;
    let (_gateway, sink) = listening(smsc.settings());
    let text = "id:1 stat:DELIVRD";
    sink.broken.store(true, Ordering::SeqCst);

    let refused = smsc.deliver(text).await;
    sink.broken.store(false, Ordering::SeqCst);
    let stored = smsc.deliver(text).await;

    assert_eq!((refused.command_status(), stored.command_status()), (0x64, OK));
    assert_eq!(sink.next().await.2, Receipt::Delivered);
    assert!(sink.is_empty().await);
}

#[tokio::test]
async fn without_a_listener_a_receipt_is_to_be_repeated() {
    let smsc = Smsc::start().await;
    let gateway = deaf(smsc.settings());
    gateway.send(&sms("a")).await.unwrap();

    let refused = smsc.deliver("id:id-0 stat:DELIVRD").await;

    assert_eq!(refused.command_status(), 0x64);
}

#[tokio::test]
async fn what_is_no_receipt_of_an_end_is_acknowledged_and_ignored() {
    let smsc = Smsc::start().await;
    let (_gateway, sink) = listening(smsc.settings());

    for (esm_class, text) in [
        (0x00, "id:1 stat:DELIVRD err:000"),
        (0x04, "id:1 stat:ENROUTE err:000"),
        (0x20, "id:1 stat:DELIVRD err:000"),
        (0x04, "Hello"),
    ] {
        let response = smsc.deliver_with(esm_class, text, vec![]).await;
        assert_eq!(response.command_status(), OK, "{esm_class} {text}");
    }

    assert!(sink.is_empty().await);
}
