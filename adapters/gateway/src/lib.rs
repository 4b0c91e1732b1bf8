//! The SMS gateways: a console for development, providers that are called over HTTP, and SMSCs that
//! speak SMPP. Also the receiver of events, and the collector of spans.

mod answer;
mod authorities;
mod catalogue;
mod client;
mod collector;
mod console;
mod events;
#[cfg_attr(not(test), expect(dead_code, reason = "the first providers use it"))]
mod fields;
mod http_gateway;
mod provider;
mod providers;
mod public_address;
mod request;
mod signing;
mod smpp;
mod spec;
#[cfg(test)]
mod testing;
mod wire;

use std::{num::NonZeroUsize, sync::Arc};

use application::ports::{
    Accepted, CallNotes, GatewayReceipt, Receipt, ReceiptSink, SendError, Sms, SmsGateway,
};
use domain::{Channel, GatewayName, Measure};

use self::smpp::SmppGateway;

pub use authorities::Authorities;
pub use catalogue::{COMMON, Common, Listed, build, catalogue, costs};
pub use collector::{
    CollectorHeaders, InvalidCollectorHeaders, InvalidSpanCollector, NotCollected, SpanCollector,
    SpanCollectorSettings,
};
pub use console::ConsoleGateway;
pub use events::{EventSinkSettings, InvalidEventSink, WebhookEventSink};
pub use fields::{FieldProblem, Fields, Secret};
pub use http_gateway::HttpGateway;
pub use provider::{ReceiptCall, ReceiptRefused, ReceiptReply};
pub use providers::PROVIDERS;
pub use public_address::has_private_address;
pub use spec::{Field, FieldKind, ProviderSpec};

/// A gateway, made of its settings by [`build`].
#[derive(Debug)]
pub struct Gateway {
    transport: Transport,
    max_segments: Option<NonZeroUsize>,
}

/// The ways to a provider.
#[derive(Debug)]
enum Transport {
    Console(ConsoleGateway),
    Http(HttpGateway),
    Smpp(SmppGateway),
}

impl Gateway {
    /// Reads what the provider posted to `/v1/receipts/{gateway}`.
    pub fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        match &self.transport {
            Transport::Console(_) | Transport::Smpp(_) => Err(ReceiptRefused::Unreadable),
            Transport::Http(gateway) => gateway.receipts(call),
        }
    }

    /// The channel by which the gateway brings a code to the user.
    pub fn channel(&self) -> Channel {
        match &self.transport {
            Transport::Console(_) | Transport::Smpp(_) => Channel::Sms,
            Transport::Http(gateway) => gateway.channel(),
        }
    }

    /// Whether deliveries are reported: over the gateway's own connection, or to the URL `callback` if
    /// there is one. The programs behind a webhook report by themselves, or not at all.
    pub fn reports_receipts(&self, callback: Option<&str>) -> bool {
        match &self.transport {
            Transport::Console(_) => false,
            Transport::Http(gateway) => callback.is_some_and(|url| gateway.reports_receipts(url)),
            Transport::Smpp(gateway) => gateway.reports_receipts(),
        }
    }

    /// Whether [`receipts`](Self::receipts) checks a signature. If not, the token in the URL is
    /// required.
    pub fn verifies_receipts(&self) -> bool {
        match &self.transport {
            Transport::Console(_) | Transport::Smpp(_) => false,
            Transport::Http(gateway) => gateway.verifies_receipts(),
        }
    }

    /// The answer that the provider expects to a receipt.
    pub fn receipt_reply(&self) -> ReceiptReply {
        match &self.transport {
            Transport::Console(_) | Transport::Smpp(_) => ReceiptReply::EMPTY,
            Transport::Http(gateway) => gateway.receipt_reply(),
        }
    }

    /// Asks the provider for the final state of the message with this reference.
    ///
    /// Returns `None` if the provider cannot be asked, does not answer, or knows no final state yet.
    pub async fn status(&self, reference: &str) -> Option<Receipt> {
        match &self.transport {
            Transport::Console(_) | Transport::Smpp(_) => None,
            Transport::Http(gateway) => gateway.status(reference).await,
        }
    }

    /// Hands the receipts that come over the gateway's own connection to `sink` from now on, and
    /// connects. Must be called before the first message and in a Tokio runtime.
    ///
    /// Other gateways report to [`receipts`](Self::receipts), and ignore this.
    pub fn listen(&self, name: &GatewayName, sink: Arc<dyn ReceiptSink>) {
        if let Transport::Smpp(gateway) = &self.transport {
            gateway.listen(name.clone(), sink);
        }
    }

    /// Lets the gateway keep notes on its calls from now on. Must be called before the first message.
    ///
    /// Without it, a gateway that needs notes cannot recognise a repeated message.
    pub fn keep_notes(&self, name: &GatewayName, notes: Arc<dyn CallNotes>) {
        if let Transport::Http(gateway) = &self.transport {
            gateway.keep_notes(name.clone(), notes);
        }
    }

    /// The number of concurrent calls that this process can make, if the gateway has a limit of its own.
    pub fn window(&self) -> Option<NonZeroUsize> {
        match &self.transport {
            Transport::Console(_) | Transport::Http(_) => None,
            Transport::Smpp(gateway) => gateway.window(),
        }
    }

    fn refuse_long(&self, text: &str) -> Result<(), SendError> {
        let Some(max) = self.max_segments else { return Ok(()) };
        match Measure::of(text).segments {
            segments if segments <= max.get() => Ok(()),
            segments => Err(SendError::Rejected(format!(
                "the text takes {segments} segments, and max_segments is {max}"
            ))),
        }
    }
}

impl SmsGateway for Gateway {
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        self.refuse_long(&sms.text)?;
        match &self.transport {
            Transport::Console(gateway) => gateway.send(sms).await,
            Transport::Http(gateway) => gateway.send(sms).await,
            Transport::Smpp(gateway) => gateway.send(sms).await,
        }
    }

    fn deduplicates(&self) -> bool {
        match &self.transport {
            Transport::Console(gateway) => gateway.deduplicates(),
            Transport::Http(gateway) => gateway.deduplicates(),
            Transport::Smpp(gateway) => gateway.deduplicates(),
        }
    }
}
