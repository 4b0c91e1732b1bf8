use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use application::{
    Authorize, AuthorizeError, SubmitError, SubmitMessage, TraceParent,
    ports::{ApiKeys, Outbox},
};
use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{
        HeaderMap,
        header::{CONTENT_TYPE, EXPECT},
    },
    response::{IntoResponse, Response},
    routing::post,
};
use domain::{PhoneNumber, Scope};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use rand_core::CryptoRng;
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use validator::{Validate, ValidationError};

use crate::{
    ApiAuth, ApiMetrics, auth,
    error::{ApiError, FailureLog, JSON},
    limits,
};

#[cfg(test)]
mod tests;

/// A request has a phone number in it and no more.
pub(crate) const MAX_BODY: usize = 16 * 1024;

/// How much of a body that is too long is read all the same.
///
/// A connection closed with unread bytes is reset, and then the client may never see our answer.
const MAX_IGNORED_BODY: usize = 4 * 1024 * 1024;

/// A JSON string, spelled as the Go service spelled it.
const ACCEPTED: &str = r#""message successfuly sended""#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiSettings {
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// Who must show a key: here, only with [`ApiAuth::All`].
    pub auth: ApiAuth,
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    TooLong,
    BrokenOff,
}

#[derive(Deserialize, Validate)]
struct SendRequest {
    #[validate(custom(function = is_phone_number))]
    phone: String,
}

struct Api<O, K, R> {
    submit: Arc<SubmitMessage<O, R>>,
    keys: Arc<Authorize<K>>,
    metrics: ApiMetrics,
    settings: ApiSettings,
    failures: FailureLog,
}

/// The API: `POST` to `/api` or `/api/send`, each with or without a slash at the end.
///
/// Every answer is counted in `metrics`, except to paths that are not the API's.
pub fn router<O, K, R>(
    submit: Arc<SubmitMessage<O, R>>,
    keys: Arc<Authorize<K>>,
    metrics: ApiMetrics,
    settings: ApiSettings,
) -> Router
where
    O: Outbox,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    let api = Arc::new(Api {
        submit,
        keys,
        metrics,
        settings,
        failures: FailureLog::new("messages are not stored"),
    });
    let send = post(send::<O, K, R>).fallback(refuse_method::<O, K, R>);
    Router::new()
        .route("/api", send.clone())
        .route("/api/", send.clone())
        .route("/api/send", send.clone())
        .route("/api/send/", send)
        .fallback(async || ApiError::NotFound)
        .with_state(api)
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self { body_timeout: Duration::from_secs(10), auth: ApiAuth::default() }
    }
}

async fn send<O, K, R>(State(api): State<Arc<Api<O, K, R>>>, request: Request) -> Response
where
    O: Outbox,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    let started = Instant::now();
    // Nothing is shared with the request but the use case, which is whole between two calls.
    let response = match AssertUnwindSafe(api.send(request)).catch_unwind().await {
        Ok(Ok(())) => ([(CONTENT_TYPE, JSON)], ACCEPTED).into_response(),
        Ok(Err(error)) => error.into_response(),
        Err(_) => {
            tracing::error!("a request's handler panicked");
            ApiError::Internal.into_response()
        }
    };
    api.metrics.answered(response.status(), started.elapsed());
    response
}

/// axum adds the `Allow` header.
async fn refuse_method<O, K, R>(State(api): State<Arc<Api<O, K, R>>>) -> Response
where
    O: Outbox,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    let response = ApiError::MethodNotAllowed.into_response();
    api.metrics.answered(response.status(), Duration::ZERO);
    response
}

impl<O: Outbox, K: ApiKeys, R: CryptoRng + Send + 'static> Api<O, K, R> {
    async fn send(&self, request: Request) -> Result<(), ApiError> {
        let (phone, trace) = self.asked(request).await?;
        let Err(error) = self.submit.execute(phone, trace).await else {
            return Ok(());
        };
        Err(match error {
            SubmitError::Limited(violations) => {
                ApiError::TooMany { retry_after: limits::retry_after(&violations) }
            }
            SubmitError::Full => {
                self.failures.log(&error);
                ApiError::Busy
            }
            SubmitError::Unavailable(_) => {
                self.failures.log(&error);
                ApiError::StorageUnavailable
            }
        })
    }

    /// What is asked for. Nothing of the request is kept while it waits to be stored: its headers
    /// alone hold the whole buffer that they came in, and the connection would take another.
    async fn asked(
        &self,
        request: Request,
    ) -> Result<(PhoneNumber, Option<TraceParent>), ApiError> {
        let (head, body) = request.into_parts();
        // Also of one without a key: whoever is answered in the middle of a body may not hear it.
        let body = timeout(self.settings.body_timeout, read(body, &head.headers)).await;
        self.authorize(&head.headers).await?;
        let body = body.map_err(|_| ApiError::BodyTimeout)?.map_err(|_| ApiError::InvalidBody)?;
        if !is_json(&head.headers) {
            return Err(ApiError::InvalidBody);
        }
        Ok((parse(&body)?, trace(&head.headers)))
    }

    async fn authorize(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.settings.auth != ApiAuth::All {
            return Ok(());
        }
        match auth::caller(&self.keys, headers, Scope::Send).await {
            Ok(_) => Ok(()),
            Err(AuthorizeError::Unknown) => Err(ApiError::Unauthorized),
            Err(AuthorizeError::Lacks(_)) => Err(ApiError::Forbidden),
            Err(error @ AuthorizeError::Unavailable(_)) => {
                self.failures.log(&error);
                Err(ApiError::StorageUnavailable)
            }
        }
    }
}

/// Reads a body to its end, and refuses one that is too long.
pub(crate) async fn read(mut body: Body, headers: &HeaderMap) -> Result<Vec<u8>, Unread> {
    // A client that waits for our leave sends nothing that would have to be read.
    let readable = if headers.contains_key(EXPECT) { MAX_BODY } else { MAX_IGNORED_BODY };
    let announced = body.size_hint().lower();
    if announced > readable as u64 {
        return Err(Unread::TooLong);
    }

    let mut content = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unread::BrokenOff)?.into_data() else { continue };
        length += data.len();
        if length > MAX_IGNORED_BODY {
            break;
        }
        if length <= MAX_BODY {
            content.extend_from_slice(&data);
        }
    }
    if length <= MAX_BODY { Ok(content) } else { Err(Unread::TooLong) }
}

/// Whether the content type is `application/json` or `application/<something>+json`.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let media_type = value.split(';').next().unwrap_or_default().trim();
    let Some((kind, subtype)) = media_type.split_once('/') else { return false };
    let suffixed =
        || subtype.rsplit_once('+').is_some_and(|(_, suffix)| suffix.eq_ignore_ascii_case("json"));
    kind.eq_ignore_ascii_case("application") && (subtype.eq_ignore_ascii_case("json") || suffixed())
}

fn parse(body: &[u8]) -> Result<PhoneNumber, ApiError> {
    let refused = |rule: &dyn std::fmt::Display| {
        tracing::debug!(%rule, "request refused");
        ApiError::InvalidBody
    };

    // All of it: serde_json does not look into the texts of fields that it skips.
    let text = std::str::from_utf8(body).map_err(|_| refused(&"not UTF-8"))?;
    // serde would take the array `["89999999999"]` for the struct.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(refused(&"not a JSON object"));
    }
    // serde's own words may repeat what stands in the body.
    let request: SendRequest =
        serde_json::from_str(text).map_err(|_| refused(&"not the documented JSON"))?;
    // So may validator's: its errors carry the value.
    request.validate().map_err(|errors| refused(&rule_broken(&errors)))?;
    request.phone.parse().map_err(|error| refused(&error))
}

/// The domain's rule, and that of the Go predecessor, which took no number of less than 11 digits.
fn is_phone_number(phone: &str) -> Result<(), ValidationError> {
    let broken = |rule: String| Err(ValidationError::new("phone_number").with_message(rule.into()));
    match phone.parse::<PhoneNumber>() {
        Err(error) => broken(error.to_string()),
        Ok(_) if phone.len() < 11 => broken("a phone number has 11 to 15 digits here".to_owned()),
        Ok(_) => Ok(()),
    }
}

fn rule_broken(errors: &validator::ValidationErrors) -> String {
    let errors = errors.field_errors();
    let messages = errors.values().flat_map(|errors| errors.iter());
    let messages: Vec<&str> = messages.filter_map(|error| error.message.as_deref()).collect();
    messages.join(", ")
}

/// The caller's trace, if it sent one header that is valid.
pub(crate) fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all("traceparent").iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}
