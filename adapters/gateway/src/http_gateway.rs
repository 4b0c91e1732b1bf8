//! A gateway that calls its provider over HTTP.

mod notebook;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use application::{
    BoxError, Chain,
    ports::{Accepted, CallNotes, GatewayReceipt, Receipt, Reported, SendError, Sms, SmsGateway},
};
use autometrics::autometrics;
use bytes::Bytes;
use domain::{Channel, GatewayName, MessageId};
use http::{Request, header::USER_AGENT, response::Parts};
use hyper_util::client::legacy::connect::dns::GaiResolver;
use tokio::time::Instant;

use self::notebook::Notebook;
use crate::{
    answer::Answer,
    client::{AGENT, Client, ClientSettings, NoAnswer},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused, ReceiptReply, Reservation},
    wire,
};

/// A gateway that calls its provider over HTTP.
pub struct HttpGateway {
    client: Client,
    provider: Box<dyn Provider>,
    /// Where the gateway keeps reservations. Without it, each call makes a new one.
    notebook: OnceLock<Notebook>,
}

/// An answer with its body, if that could be read.
type Answered = (Parts, Option<Bytes>);

impl HttpGateway {
    /// Makes a gateway. It connects at the first call.
    ///
    /// Fails if TLS cannot be set up.
    pub(crate) fn new(
        provider: Box<dyn Provider>,
        settings: ClientSettings,
    ) -> Result<Self, BoxError> {
        let client = Client::new(GaiResolver::new(), settings)?;
        Ok(Self { client, provider, notebook: OnceLock::new() })
    }

    /// Lets the gateway keep notes on its calls. The first notes stay.
    pub fn keep_notes(&self, gateway: GatewayName, notes: Arc<dyn CallNotes>) {
        self.notebook.get_or_init(|| Notebook::new(gateway, notes));
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

    /// The channel by which the provider brings a code to the user.
    pub fn channel(&self) -> Channel {
        self.provider.channel()
    }

    /// Whether the provider reports deliveries, if it knows where to.
    pub fn reports_receipts(&self, callback: &str) -> bool {
        self.provider.reports_receipts() && self.provider.takes_callback(callback)
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
        let deadline = self.client.deadline();
        // A message whose outcome is not known has no reference but its own id. If it has a reservation,
        // the provider knows it by that.
        let noted = match reference.parse() {
            Ok(message) => self.noted(message, deadline).await.ok()?,
            Err(_) => None,
        };
        let request = self.provider.status_request(noted.as_deref().unwrap_or(reference))?;
        let answered = self.call(request, deadline).await.ok()?;
        self.provider.judge_status(&answer(&answered))
    }

    async fn call(
        &self,
        mut request: Request<Bytes>,
        deadline: Instant,
    ) -> Result<Answered, NoAnswer> {
        request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
        self.client.call_until(request, deadline).await
    }

    /// Returns the reservation for an SMS, if the provider makes them: that of an earlier call, or a new
    /// one.
    ///
    /// A new one is stored before the SMS is sent. After a crash before that, the next call makes another
    /// one, and after a crash later, it finds this one. The provider sends nothing here, so no failure is
    /// ambiguous.
    async fn reserve(
        &self,
        sms: &Outgoing<'_>,
        deadline: Instant,
    ) -> Result<Option<Reservation>, SendError> {
        let Some(request) = self.provider.reserve(sms) else { return Ok(None) };
        let request = request?;
        let message = sms.sms.message.id;
        if let Some(id) = self.noted(message, deadline).await? {
            return Ok(Some(Reservation { id, is_earlier: true }));
        }
        let answered = self.call(request, deadline).await;
        let answered = answered.map_err(|none| unsent(unanswered(&none)))?;
        let id = self.provider.judge_reservation(&answer(&answered)).map_err(unsent)?;
        let kept = match self.notebook.get() {
            Some(notebook) => notebook.keep(message, &id, sms.sms.good_for, deadline).await?,
            None => id.clone(),
        };
        if Instant::now() >= deadline {
            return Err(not_called("no time was left to send"));
        }
        // Another process may have been first.
        Ok(Some(Reservation { is_earlier: kept != id, id: kept }))
    }

    /// Returns the reservation of an earlier call.
    async fn noted(
        &self,
        message: MessageId,
        deadline: Instant,
    ) -> Result<Option<String>, SendError> {
        match self.notebook.get() {
            Some(notebook) => notebook.find(message, deadline).await,
            None => Ok(None),
        }
    }
}

impl SmsGateway for HttpGateway {
    #[autometrics(struct_name = "HttpGateway")]
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        let id = sms.message.id.to_string();
        let outgoing = Outgoing::new(sms, &id);
        let deadline = self.client.deadline();
        let reservation = self.reserve(&outgoing, deadline).await?;
        let reserved = reservation.as_ref().map(|reservation| &*reservation.id);
        let request = self.provider.prepare(&Outgoing { reserved, ..outgoing })?;
        let answered = self.call(request, deadline).await.map_err(|none| unanswered(&none))?;
        let accepted = match &reservation {
            Some(reservation) => self.provider.judge_reserved(&answer(&answered), reservation)?,
            None => self.provider.judge(&answer(&answered))?,
        };
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

fn answer((head, body): &Answered) -> Answer<'_> {
    Answer { status: head.status, headers: &head.headers, body: body.as_deref() }
}

fn not_called(reason: &str) -> SendError {
    SendError::Unavailable { detail: format!("not called: {reason}"), retry_after: None }
}

/// Returns the outcome of a request that sends nothing: it is never ambiguous.
fn unsent(error: SendError) -> SendError {
    match error {
        SendError::Ambiguous(detail) => SendError::Unavailable { detail, retry_after: None },
        error => error,
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
