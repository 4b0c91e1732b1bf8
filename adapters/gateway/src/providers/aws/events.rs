//! Notifications of Amazon SNS, which bring the events of a configuration set.
//!
//! Their signature is not checked: it needs a certificate from a URL in the notification. The token
//! in the URL of the subscription stands for it.

use serde_json::Value;

use crate::provider::{ReceiptCall, ReceiptRefused};

/// Returns the event that SNS brings from `topic`, or `None` if SNS only asks whether this
/// subscription is wanted.
///
/// That question is not answered here. The log says how to do it by hand, once.
pub(super) fn notified(
    call: &ReceiptCall<'_>,
    topic: &str,
) -> Result<Option<Value>, ReceiptRefused> {
    let json = call.json().ok_or(ReceiptRefused::Unreadable)?;
    // With raw delivery, SNS posts the event without an envelope.
    if call.header("x-amz-sns-rawdelivery") == Some("true") {
        let of_topic = call.header("x-amz-sns-topic-arn") == Some(topic);
        return if of_topic { Ok(Some(json)) } else { Err(ReceiptRefused::Unreadable) };
    }
    if json["TopicArn"] != topic {
        return Err(ReceiptRefused::Unreadable);
    }
    match json["Type"].as_str() {
        Some("Notification") => {
            let message = json["Message"].as_str().and_then(|it| serde_json::from_str(it).ok());
            message.map(Some).ok_or(ReceiptRefused::Unreadable)
        }
        Some("SubscriptionConfirmation") => {
            let token = json["Token"].as_str().filter(|it| is_token(it));
            let token = token.ok_or(ReceiptRefused::Unreadable)?;
            // The log has the token because the operator needs it. It is no secret: all that it does
            // is to confirm that this topic, which the settings name, reports to our own URL.
            tracing::warn!(
                topic,
                token,
                "SNS waits until the subscription is confirmed: \
                 aws sns confirm-subscription --topic-arn TOPIC --token TOKEN"
            );
            Ok(None)
        }
        Some("UnsubscribeConfirmation") => {
            tracing::warn!(topic, "SNS ended the subscription: no more receipts will come");
            Ok(None)
        }
        _ => Err(ReceiptRefused::Unreadable),
    }
}

/// Whether a text is safe to paste into a command. A caller chooses it, and it goes into the log.
fn is_token(text: &str) -> bool {
    (1..=1024).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
