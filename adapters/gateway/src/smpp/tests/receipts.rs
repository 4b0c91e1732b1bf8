//! Receipts from the SMSC to the store, and their responses.

use smpp34::{Tlv, TlvTag};
use tokio::time::sleep;

use super::{smsc::Smsc, *};

const OK: u32 = 0;

#[tokio::test]
async fn a_receipt_is_stored_under_the_reference_of_the_message() {
    let smsc = Smsc::start().await;
    smsc.give_ids(&["000FF00F", "000A1b0b"]);
    let (gateway, sink) = listening(smsc.settings());
    let first = gateway.send(&sms("a")).await.unwrap().reference.unwrap();
    let second = gateway.send(&sms("a")).await.unwrap().reference.unwrap();
    for reference in [&first, &second] {
        sink.learn(reference);
    }

    let delivered = smsc.deliver("id:A1b0b sub:001 dlvrd:001 stat:DELIVRD err:000 text:a").await;
    let failed = smsc.deliver("id:00FF00F sub:001 dlvrd:000 stat:UNDELIV err:001 text:a").await;

    assert_eq!((delivered.command_status(), failed.command_status()), (OK, OK));
    assert_eq!(sink.next().await, ("main".parse().unwrap(), first, Receipt::Delivered));
    assert_eq!(sink.next().await, ("main".parse().unwrap(), second, Receipt::Undelivered));
}

#[tokio::test]
async fn decimal_receipts_of_hexadecimal_ids_are_recognised() {
    let smsc = Smsc::start().await;
    let (_gateway, sink) = listening(smsc.settings());
    sink.learn("ff00f");

    let response = smsc.deliver("id:0001044495 stat:DELIVRD").await;
    assert_eq!(response.command_status(), OK);
    assert_eq!(sink.next().await.1, "ff00f");

    // The next one comes before its outcome, and is kept under the spelling of the answer.
    assert_eq!(smsc.deliver("id:0001044496 stat:DELIVRD").await.command_status(), OK);
    assert_eq!(sink.next().await.1, "ff010");
}

#[tokio::test]
async fn a_receipt_is_not_taken_for_one_of_a_message_with_the_same_number_in_another_base() {
    let smsc = Smsc::start().await;
    let (_gateway, sink) = listening(smsc.settings());
    // 16 is not known yet, and 22 is the hexadecimal 16.
    sink.learn("22");

    let (early, ()) = tokio::join!(smsc.deliver("id:16 stat:DELIVRD"), async {
        sleep(Duration::from_millis(300)).await;
        sink.learn("16");
    });
    assert_eq!(early.command_status(), OK);
    assert_eq!(sink.next().await.1, "16");

    // Its call never ended here.
    let strange = smsc.deliver("id:10 stat:DELIVRD").await;
    assert_eq!(strange.command_status(), 0x64);
    assert!(sink.is_empty().await);
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
    let (_, reference, receipt) = sink.next().await;
    assert_eq!((&*reference, receipt), ("id-0", Receipt::Delivered));
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
