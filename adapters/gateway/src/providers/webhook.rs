//! The webhook: a program of the operator, which receives an SMS as JSON with an idempotency key.
//!
//! docs/gateways.md documents the request and the meaning of the answers.

use std::fmt;

use application::ports::{Accepted, SendError};
use bytes::Bytes;
use http::{HeaderValue, Request, header::HeaderName};

use crate::{
    answer::Answer,
    client::Target,
    provider::{Outgoing, Provider},
    spec::{Field, FieldKind, ProviderSpec},
    wire,
};

#[cfg(test)]
mod tests;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "webhook",
    title: "Webhook",
    sender: false,
    params: &[],
    fields: &[
        Field::required(
            "url",
            FieldKind::Address,
            "Where SMS are posted. A user and a password in it become `Authorization: Basic`.",
        ),
        Field::with_default(
            "deduplicates",
            FieldKind::Boolean,
            "true",
            "Whether the webhook heeds `Idempotency-Key`. With `false`, a call without an outcome is \
             not repeated there.",
        ),
    ],
    make: |fields| {
        let (target, deduplicates) = (fields.address("url"), fields.boolean("deduplicates"));
        Some(Box::new(Webhook { target: target?, deduplicates: deduplicates? }))
    },
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

struct Webhook {
    target: Target,
    deduplicates: bool,
}

impl Provider for Webhook {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let mut request = self.target.post(wire::encode(sms.sms, sms.id));
        let headers = request.headers_mut();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::try_from(sms.id).expect("a UUID is ASCII"));
        if let Some(trace) = &sms.sms.trace {
            let trace = HeaderValue::from_str(trace.as_str()).expect("a traceparent is ASCII");
            headers.insert(TRACEPARENT, trace);
        }
        request
    }

    /// Only the status decides. The body is read for the reference.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        wire::judge(answer.status, answer.headers, answer.body)
    }

    /// Every request has the message's id as its idempotency key. The settings say whether the
    /// webhook honours it.
    fn deduplicates(&self) -> bool {
        self.deduplicates
    }

    /// The program behind it reports to `POST /v1/receipts`, if at all.
    fn reports_receipts(&self) -> bool {
        false
    }
}

/// Leaves out the path and the query, where providers put keys.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("host", &self.target.host()).finish_non_exhaustive()
    }
}
