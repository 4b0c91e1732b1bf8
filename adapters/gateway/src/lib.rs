//! The SMS gateways (a console for development, and the webhook of a provider), and the receiver of
//! events.

mod answer;
mod client;
mod console;
mod events;
#[cfg_attr(not(test), expect(dead_code, reason = "the first providers use it"))]
mod fields;
#[cfg_attr(not(test), expect(dead_code, reason = "the first providers use it"))]
mod http_gateway;
mod provider;
mod providers;
mod public_address;
mod request;
mod signing;
mod smpp;
#[cfg_attr(not(test), expect(dead_code, reason = "the first providers use it"))]
mod spec;
#[cfg(test)]
mod testing;
mod webhook;
mod wire;

use application::ports::{Accepted, SendError, Sms, SmsGateway};

pub use console::ConsoleGateway;
pub use events::{EventSinkSettings, InvalidEventSink, WebhookEventSink};
pub use fields::{FieldProblem, Fields, Secret};
pub use http_gateway::HttpGateway;
pub use provider::{ReceiptCall, ReceiptRefused, ReceiptReply};
pub use providers::PROVIDERS;
pub use public_address::has_private_address;
pub use smpp::{DefaultAlphabet, Numbering, ReceiptIds, SmppGateway, SmppSettings};
pub use spec::{Field, FieldKind, ProviderSpec};
pub use webhook::{InvalidWebhook, WebhookGateway, WebhookSettings};

/// The gateway that the settings choose.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub enum Gateway {
    Console(ConsoleGateway),
    Webhook(WebhookGateway),
}

impl SmsGateway for Gateway {
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        match self {
            Self::Console(gateway) => gateway.send(sms).await,
            Self::Webhook(gateway) => gateway.send(sms).await,
        }
    }

    fn deduplicates(&self) -> bool {
        match self {
            Self::Console(gateway) => gateway.deduplicates(),
            Self::Webhook(gateway) => gateway.deduplicates(),
        }
    }
}
