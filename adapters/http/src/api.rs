use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use application::{
    Authorize, AuthorizeError, Submission, SubmitError, SubmitMessage, TraceParent,
    ports::{ApiKeys, Outbox, Violation},
};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use domain::{ApiKeyId, Origin, Region, Scope};
use futures_util::FutureExt;
use rand_core::CryptoRng;

use crate::{
    ApiAuth, ApiMetrics, auth,
    error::{ApiError, FailureLog, JSON, retry_after},
    numbering,
    request::{Content, Unread, read_within},
};

mod phone;
#[cfg(test)]
mod tests;

/// The longest body in bytes. The Go service had no limit, and its clients may send more than a
/// phone.
const MAX_BODY: usize = 256 * 1024;

/// A JSON string, spelled as the Go service spelled it.
const ACCEPTED: &str = r#""message successfuly sended""#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiSettings {
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// `/api` needs a key with [`ApiAuth::All`] only.
    pub auth: ApiAuth,
    /// The region in whose national format a number may be written.
    pub default_region: Option<Region>,
    /// Whether the paths exist.
    pub is_open: bool,
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
/// Every answer is counted in `metrics`, except answers to unknown paths.
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
        failures: FailureLog::new("cannot store messages; requests are answered 503"),
    });
    let paths: &[&str] =
        if settings.is_open { &["/api", "/api/", "/api/send", "/api/send/"] } else { &[] };
    let send = post(send::<O, K, R>).fallback(refuse_method::<O, K, R>);
    paths
        .iter()
        .fold(Router::new(), |router, path| router.route(path, send.clone()))
        .fallback(async || ApiError::NotFound)
        .with_state(api)
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            body_timeout: Duration::from_secs(10),
            auth: ApiAuth::default(),
            default_region: None,
            is_open: true,
        }
    }
}

async fn send<O, K, R>(State(api): State<Arc<Api<O, K, R>>>, request: Request) -> Response
where
    O: Outbox,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    let mut observed = api.metrics.begin("POST", "/api", request.headers());
    let trace = observed.trace.take();
    // A panic cannot leave broken state: only the use case is shared, and it has none between calls.
    let response = match AssertUnwindSafe(api.send(request, trace)).catch_unwind().await {
        Ok(Ok(())) => ([(CONTENT_TYPE, JSON)], ACCEPTED).into_response(),
        Ok(Err(error)) => error.into_response(),
        Err(_) => {
            tracing::error!("a request's handler panicked");
            ApiError::Internal.into_response()
        }
    };
    api.metrics.answered(response.status(), observed);
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
    api.metrics.refused(response.status());
    response
}

impl<O: Outbox, K: ApiKeys, R: CryptoRng + Send + 'static> Api<O, K, R> {
    async fn send(&self, request: Request, trace: Option<TraceParent>) -> Result<(), ApiError> {
        let submission = self.parse(request, trace).await?;
        let region = submission.to.region();
        let Err(error) = self.submit.execute(submission).await else {
            self.metrics.started(Origin::Api, region);
            return Ok(());
        };
        Err(match error {
            SubmitError::Limited(violations) => {
                self.metrics.limited(Origin::Api, &violations);
                let of_phone = |it: &Violation| it.policy.name.as_str().starts_with("phone-");
                let retry_after = retry_after(&violations);
                ApiError::TooMany { to_number: violations.iter().any(of_phone), retry_after }
            }
            SubmitError::Refused(_) => ApiError::NumberRefused,
            SubmitError::BudgetExhausted => ApiError::BudgetExhausted,
            SubmitError::Blocked => ApiError::Blocked,
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

    /// Reads and parses a request.
    ///
    /// It keeps nothing of the request: the headers alone hold the whole buffer that they came in,
    /// and while the message waits to be stored the connection would take another buffer.
    async fn parse(
        &self,
        request: Request,
        trace: Option<TraceParent>,
    ) -> Result<Submission, ApiError> {
        let (head, body) = request.into_parts();
        let allowed = self.authorize(&head.headers).await;
        let patience = self.settings.body_timeout;
        let body = read_within(patience, body, &head.headers, MAX_BODY, allowed.is_ok()).await;
        let api_key = allowed?;
        let body = body.map_err(|error| match error {
            Unread::TooLate => ApiError::BodyTimeout,
            Unread::NoRoom => ApiError::Busy,
            Unread::TooLong | Unread::BrokenOff => ApiError::InvalidBody,
        })?;
        let Content { bytes, room } = body;
        let written = phone::read(&head, bytes).await?;
        drop(room);
        let to = numbering::recipient(&written, self.settings.default_region);
        Ok(Submission { to, written, api_key, trace })
    }

    async fn authorize(&self, headers: &HeaderMap) -> Result<Option<ApiKeyId>, ApiError> {
        if self.settings.auth != ApiAuth::All {
            return Ok(None);
        }
        match auth::caller(&self.keys, headers, Scope::Send).await {
            Ok(id) => Ok(Some(id)),
            Err(AuthorizeError::Unknown) => Err(ApiError::Unauthorized),
            Err(AuthorizeError::Lacks(_)) => Err(ApiError::Forbidden),
            Err(error @ AuthorizeError::Unavailable(_)) => {
                self.failures.log(&error);
                Err(ApiError::StorageUnavailable)
            }
        }
    }
}
