//! Reading of requests that `/api` and `/v1` share: body, media type and trace.

use std::time::Duration;

use application::TraceParent;
use axum::{
    body::{Body, HttpBody},
    http::{
        HeaderMap,
        header::{CONTENT_TYPE, EXPECT},
    },
};
use http_body_util::BodyExt;
use tokio::time::timeout;

/// How much of a too long body is read and ignored.
///
/// A connection that is closed with unread bytes is reset, and the client may miss the answer.
const MAX_IGNORED_BODY: usize = 4 * 1024 * 1024;

/// How long the server reads the body of a request that it refuses anyway. A client that is still
/// sending may miss an early answer.
const REFUSED_BODY: Duration = Duration::from_secs(1);

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    TooLong,
    BrokenOff,
    TooLate,
}

/// Reads a body to its end within `patience`; that of a request that is refused anyway, within a
/// second.
pub(crate) async fn read_within(
    patience: Duration,
    body: Body,
    headers: &HeaderMap,
    most: usize,
    is_allowed: bool,
) -> Result<Vec<u8>, Unread> {
    // A client that waits for our leave is answered before it sends anything.
    if !is_allowed && headers.contains_key(EXPECT) {
        return Err(Unread::BrokenOff);
    }
    let patience = if is_allowed { patience } else { patience.min(REFUSED_BODY) };
    timeout(patience, read(body, headers, most)).await.unwrap_or(Err(Unread::TooLate))
}

/// Reads a body to its end, and refuses one that is longer than `most` bytes.
async fn read(mut body: Body, headers: &HeaderMap, most: usize) -> Result<Vec<u8>, Unread> {
    // A client that waits for our leave sends nothing that would have to be read.
    let readable = if headers.contains_key(EXPECT) { most } else { MAX_IGNORED_BODY };
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
        if length <= most {
            content.extend_from_slice(&data);
        }
    }
    if length <= most { Ok(content) } else { Err(Unread::TooLong) }
}

/// Returns the caller's trace, if the request has exactly one valid `traceparent`.
pub(crate) fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all("traceparent").iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}

/// Returns the media type in lower case, without its parameters. Like gin, it ends at a semicolon or
/// a space.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.trim_start().split([';', ' ']).next().unwrap_or_default().to_ascii_lowercase()
}

/// Whether a lower-case media type is `application/json` or `application/<something>+json`.
pub(crate) fn is_json(media_type: &str) -> bool {
    let subtype = media_type.strip_prefix("application/").unwrap_or_default();
    subtype == "json" || subtype.rsplit_once('+').is_some_and(|(_, suffix)| suffix == "json")
}
