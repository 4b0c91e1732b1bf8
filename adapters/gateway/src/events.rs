//! Posts events with a signature, as Standard Webhooks specifies.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use application::{
    BoxError, Chain,
    ports::{DueEvent, EventSink, PostError},
};
use autometrics::autometrics;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use domain::EventSecrets;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header::HeaderName};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use serde::Serialize;
use tower::Service;

use crate::{
    authorities::Authorities,
    client::{Client, ClientSettings, KEEP_ALIVE, NoAnswer, Target, find_cause},
    public_address::{Guarded, NotPublic, is_public},
    wire,
};

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Posts each event to one URL, as signed JSON.
///
/// Unless private addresses are allowed, neither a redirect nor a name leads it into a private
/// network.
pub struct WebhookEventSink {
    client: Client,
    target: Target,
    secrets: EventSecrets,
}

#[derive(Clone)]
pub struct EventSinkSettings {
    /// The URL to post to. A user and a password in it are sent as `Authorization: Basic`.
    pub url: Uri,
    pub secrets: EventSecrets,
    /// The limit for one whole post, from name resolution to the last byte of the answer.
    pub timeout: Duration,
    /// Whether the host may have addresses that are not public.
    pub allow_private: bool,
    /// The authorities that sign the certificate of the host.
    pub authorities: Authorities,
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidEventSink {
    #[error("the URL for events does not begin with http:// or https:// and a host")]
    Url,
    #[error("the URL for events has an address that is not public")]
    NotPublic,
    #[error("TLS could not be set up")]
    Tls(#[source] BoxError),
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    timestamp: &'a str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phone: Option<&'a str>,
    /// Of a verification only.
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    test: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl EventSinkSettings {
    /// Settings with a time-out of ten seconds, for a host with public addresses only and a
    /// certificate of a public authority.
    pub const fn new(url: Uri, secrets: EventSecrets) -> Self {
        Self {
            url,
            secrets,
            timeout: Duration::from_secs(10),
            allow_private: false,
            authorities: Authorities::Public,
        }
    }
}

impl WebhookEventSink {
    /// Makes a sink. It resolves and connects at the first post, but checks a literal address in
    /// the URL here, because the resolver never sees one.
    pub fn new(settings: EventSinkSettings) -> Result<Self, InvalidEventSink> {
        let permits = if settings.allow_private { |_| true } else { is_public };
        Self::with_names(settings, Guarded::new(GaiResolver::new(), permits))
    }

    fn with_names<R>(
        settings: EventSinkSettings,
        names: Guarded<R>,
    ) -> Result<Self, InvalidEventSink>
    where
        R: Service<Name> + Clone + Send + Sync + 'static,
        R::Response: Iterator<Item = SocketAddr>,
        R::Error: Into<BoxError>,
        R::Future: Send + 'static,
    {
        let target = Target::of(settings.url).ok_or(InvalidEventSink::Url)?;
        if !names.permits_literal(target.host()) {
            return Err(InvalidEventSink::NotPublic);
        }
        let client = ClientSettings {
            timeout: settings.timeout,
            keep_alive: KEEP_ALIVE,
            authorities: settings.authorities,
        };
        let client = Client::new(names, client).map_err(InvalidEventSink::Tls)?;
        Ok(Self { client, target, secrets: settings.secrets })
    }

    fn request(&self, event: &DueEvent) -> Request<Bytes> {
        let id = format!("evt_{}", event.id);
        let timestamp =
            event.claimed_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let body = body(event);
        let signature = self.secrets.sign(&id, timestamp, &body);

        let mut request = self.target.post(body);
        for (name, text) in [
            (WEBHOOK_ID, id),
            (WEBHOOK_TIMESTAMP, timestamp.to_string()),
            (WEBHOOK_SIGNATURE, signature),
        ] {
            let value = HeaderValue::try_from(text).expect("digits and base64 are ASCII");
            request.headers_mut().insert(name, value);
        }
        request
    }
}

impl EventSink for WebhookEventSink {
    #[autometrics(struct_name = "WebhookEventSink")]
    async fn post(&self, event: &DueEvent) -> Result<(), PostError> {
        let (head, _) =
            self.client.call(self.request(event)).await.map_err(|none| unanswered(&none))?;
        judge(head.status, &head.headers)
    }
}

/// Leaves out the path and the query, which may contain keys.
impl fmt::Debug for WebhookEventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookEventSink")
            .field("host", &self.target.host())
            .field("timeout", &self.client.timeout())
            .field("secrets", &self.secrets)
            .finish()
    }
}

/// Leaves out the parts that may be secret: user, password, path and query.
impl fmt::Debug for EventSinkSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSinkSettings")
            .field("host", &self.url.host().unwrap_or_default())
            .field("secrets", &self.secrets)
            .field("timeout", &self.timeout)
            .field("allow_private", &self.allow_private)
            .finish_non_exhaustive()
    }
}

/// Makes the body. It has the same bytes at each try.
fn body(event: &DueEvent) -> Bytes {
    let timestamp = DateTime::<Utc>::from(event.at).to_rfc3339_opts(SecondsFormat::Millis, true);
    let body = Body {
        r#type: &format!("verification.{}", event.kind.as_str()),
        timestamp: &timestamp,
        data: Data {
            id: event.verification.map(|id| id.to_string()),
            phone: event.phone.as_deref(),
            channel: event.verification.map(|_| event.channel.as_str()),
            metadata: event
                .metadata
                .as_ref()
                .and_then(|metadata| serde_json::from_str(metadata.as_str()).ok()),
            test: event.test,
            delivery: event.delivery.as_deref(),
            reason: event.reason.as_deref(),
        },
    };
    serde_json::to_vec(&body).expect("a struct of texts is JSON").into()
}

/// Returns the outcome of an answer. Only the status decides.
fn judge(status: StatusCode, headers: &HeaderMap) -> Result<(), PostError> {
    if status.is_success() {
        Ok(())
    } else if status == StatusCode::GONE {
        Err(PostError::Gone)
    } else {
        let detail = format!("status {}", status.as_u16());
        Err(PostError::Failed { detail, retry_after: wire::retry_after(headers) })
    }
}

fn unanswered(none: &NoAnswer) -> PostError {
    tracing::debug!(error = %Chain(none), "no answer to an event");
    let detail = match find_cause::<NotPublic>(none) {
        Some(refused) => format!("not connected: {refused}"),
        None => none.to_string(),
    };
    PostError::Failed { detail, retry_after: None }
}

#[cfg(test)]
mod tests;
