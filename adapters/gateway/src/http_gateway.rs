//! A gateway that calls its provider over HTTP.

use std::fmt;

use application::{
    BoxError, Chain,
    ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError, Sms, SmsGateway},
};
use autometrics::autometrics;
use bytes::Bytes;
use http::{Request, header::USER_AGENT};
use hyper_util::client::legacy::connect::dns::GaiResolver;

use crate::{
    answer::Answer,
    client::{AGENT, Client, ClientSettings, NoAnswer},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused, ReceiptReply},
    wire,
};

/// A gateway that calls its provider over HTTP.
pub struct HttpGateway {
    client: Client,
    provider: Box<dyn Provider>,
}

impl HttpGateway {
    /// Makes a gateway. It connects at the first call.
    ///
    /// Fails if TLS cannot be set up.
    pub(crate) fn new(
        provider: Box<dyn Provider>,
        settings: ClientSettings,
    ) -> Result<Self, BoxError> {
        let client = Client::new(GaiResolver::new(), settings)?;
        Ok(Self { client, provider })
    }

    /// Reads what the provider posted to `/v1/receipts/{gateway}`.
    pub fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let mut receipts = self.provider.receipts(call)?;
        for receipt in &mut receipts {
            if let Reported::Reference(reference) = &mut receipt.of {
                // The same change as that of the reference which is stored.
                *reference = wire::printable(reference);
            }
        }
        Ok(receipts)
    }

    /// Whether [`receipts`](Self::receipts) checks a signature. If not, the token in the URL is
    /// required.
    pub fn verifies_receipts(&self) -> bool {
        self.provider.verifies_receipts()
    }

    /// The answer that the provider expects to a receipt.
    pub fn receipt_reply(&self) -> ReceiptReply {
        self.provider.receipt_reply()
    }

    /// Asks the provider for the final state of the message with this reference.
    ///
    /// Returns `None` if the provider cannot be asked, does not answer, or knows no final state yet.
    #[autometrics(struct_name = "HttpGateway")]
    pub async fn status(&self, reference: &str) -> Option<Receipt> {
        let request = self.provider.status_request(reference)?;
        let (head, body) = self.call(request).await.ok()?;
        let answer = Answer { status: head.status, headers: &head.headers, body: body.as_deref() };
        self.provider.judge_status(&answer)
    }

    async fn call(
        &self,
        mut request: Request<Bytes>,
    ) -> Result<(http::response::Parts, Option<Bytes>), NoAnswer> {
        request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
        self.client.call(request).await
    }
}

impl SmsGateway for HttpGateway {
    #[autometrics(struct_name = "HttpGateway")]
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        let id = sms.message.id.to_string();
        let request = self.provider.prepare(&Outgoing::new(sms, &id))?;
        let (head, body) = self.call(request).await.map_err(|none| unanswered(&none))?;
        let answer = Answer { status: head.status, headers: &head.headers, body: body.as_deref() };
        let accepted = self.provider.judge(&answer)?;
        let reference = accepted.reference.map(|it| wire::printable(&it));
        Ok(Accepted { reference: reference.filter(|it| !it.is_empty()), ..accepted })
    }

    fn deduplicates(&self) -> bool {
        self.provider.deduplicates()
    }
}

impl fmt::Debug for HttpGateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpGateway")
            .field("provider", &self.provider)
            .field("timeout", &self.client.timeout())
            .finish_non_exhaustive()
    }
}

/// Returns the outcome of a call without an answer.
///
/// Only if there was no connection is it certain that the gateway does not have the SMS.
pub(crate) fn unanswered(none: &NoAnswer) -> SendError {
    tracing::debug!(error = %Chain(none), "no answer from the gateway");
    let detail = none.to_string();
    match none {
        NoAnswer::NotConnected(_) => SendError::Unavailable { detail, retry_after: None },
        NoAnswer::InTime | NoAnswer::BrokenOff(_) => SendError::Ambiguous(detail),
    }
}

#[cfg(test)]
mod tests;
