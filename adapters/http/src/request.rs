//! Reads the parts of a request that `/api` and `/v1` share: body, media type and trace.

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
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

/// The length of a small body. A longer body waits for memory in [`ROOM`], for the most that it may
/// need.
const SMALL_BODY: usize = 16 * 1024;

/// The memory that all bodies longer than [`SMALL_BODY`] may use together, in KiB. Such bodies are
/// rare, except in an attack.
const ROOM_KIB: usize = 32 * 1024;
static ROOM: Semaphore = Semaphore::const_new(ROOM_KIB);

/// The number of bytes of a too long body that are read and ignored.
///
/// A connection that is closed with unread bytes is reset, and the client may miss the answer.
const MAX_IGNORED_BODY: usize = 4 * 1024 * 1024;

/// How long the server reads the body of a request that it refuses anyway. A client that is still
/// sending may miss an early answer.
const REFUSED_BODY: Duration = Duration::from_secs(1);

/// The reason why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    TooLong,
    BrokenOff,
    TooLate,
    /// Other large bodies use all the memory of [`ROOM`].
    NoRoom,
}

/// A body that was read, and its permit for the memory of large bodies.
#[derive(Debug)]
pub(crate) struct Content<'a> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) room: Option<SemaphorePermit<'a>>,
}

/// Reads a body to its end within `patience`. If the request is refused anyway, reads its body
/// within a second and keeps nothing.
pub(crate) async fn read_within(
    patience: Duration,
    body: Body,
    headers: &HeaderMap,
    most: usize,
    is_allowed: bool,
) -> Result<Content<'static>, Unread> {
    // A client that sent `Expect` gets its answer before it sends the body.
    if !is_allowed && headers.contains_key(EXPECT) {
        return Err(Unread::BrokenOff);
    }
    let (patience, most) =
        if is_allowed { (patience, most) } else { (patience.min(REFUSED_BODY), 0) };
    let deadline = Instant::now() + patience;
    let read = read(body, headers, most, &ROOM, deadline);
    timeout_at(deadline, read).await.unwrap_or(Err(Unread::TooLate))
}

/// Reads a body to its end. Refuses a body longer than `most` bytes. A large body waits for `room`.
async fn read<'a>(
    mut body: Body,
    headers: &HeaderMap,
    most: usize,
    room: &'a Semaphore,
    deadline: Instant,
) -> Result<Content<'a>, Unread> {
    // A client that sent `Expect` has not sent a body that must be read.
    let readable = if headers.contains_key(EXPECT) { most } else { MAX_IGNORED_BODY };
    let announced = body.size_hint().lower();
    if announced > readable as u64 {
        return Err(Unread::TooLong);
    }

    let announced = usize::try_from(announced).unwrap_or(usize::MAX);
    // Nothing is kept of a body that announces too much.
    let kept = if announced > most { 0 } else { most };
    let mut content = Content { bytes: Vec::new(), room: None };
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unread::BrokenOff)?.into_data() else { continue };
        length += data.len();
        if length > MAX_IGNORED_BODY {
            break;
        }
        if length > kept {
            // The body is too long. It is dropped, and other bodies may use its memory.
            content = Content { bytes: Vec::new(), room: None };
            continue;
        }
        if length > SMALL_BODY && content.room.is_none() {
            // Take memory for the whole body at once. Bodies that hold a part and wait for more
            // could deadlock.
            let whole = if announced > 0 { announced } else { most };
            content.room = Some(enter(room, whole, deadline).await?);
            content.bytes.reserve_exact(whole.saturating_sub(content.bytes.len()));
        }
        content.bytes.extend_from_slice(&data);
    }
    if length <= most { Ok(content) } else { Err(Unread::TooLong) }
}

/// Waits for memory for a body of `length` bytes. It waits for at most half of the remaining time,
/// because the body must also arrive.
async fn enter(
    room: &Semaphore,
    length: usize,
    deadline: Instant,
) -> Result<SemaphorePermit<'_>, Unread> {
    let kib = u32::try_from(length.div_ceil(1024)).unwrap_or(u32::MAX);
    let until = deadline - (deadline - Instant::now()) / 2;
    match timeout_at(until, room.acquire_many(kib)).await {
        Ok(Ok(room)) => Ok(room),
        Ok(Err(_)) | Err(_) => Err(Unread::NoRoom),
    }
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

/// Returns the media type in lower case, without its parameters. As in gin, it ends at a semicolon
/// or a space.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.trim_start().split([';', ' ']).next().unwrap_or_default().to_ascii_lowercase()
}

/// Returns whether a lower-case media type is `application/json` or `application/<something>+json`.
pub(crate) fn is_json(media_type: &str) -> bool {
    let subtype = media_type.strip_prefix("application/").unwrap_or_default();
    subtype == "json" || subtype.rsplit_once('+').is_some_and(|(_, suffix)| suffix == "json")
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};

    use super::*;

    const KIB: usize = 1024;
    const MOST: usize = 256 * KIB;

    #[tokio::test]
    async fn body_of_a_refused_request_is_not_kept() {
        let read = async |is_allowed| {
            let (headers, body) = (HeaderMap::new(), Body::from("body"));
            let read = read_within(Duration::from_secs(9), body, &headers, MOST, is_allowed).await;
            read.map(|content| content.bytes.len())
        };

        assert_eq!(read(true).await, Ok(4));
        assert_eq!(read(false).await, Err(Unread::TooLong));
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_share_one_memory_limit() {
        /// Returns a body whose first part arrives, and whose rest never does.
        fn begun(length: usize) -> Body {
            let rest = stream::pending();
            let first = stream::iter([Ok::<_, std::io::Error>(vec![b' '; length])]);
            Body::from_stream(first.chain(rest))
        }
        let room = Semaphore::new(300);
        let headers = HeaderMap::new();
        let read = |body| {
            let deadline = Instant::now() + Duration::from_secs(10);
            timeout_at(deadline, read(body, &headers, MOST, &room, deadline))
        };

        // The length is unknown, so the body takes memory for the longest one.
        let mut first = Box::pin(read(begun(17 * KIB)));
        assert!((&mut first).now_or_never().is_none());
        assert_eq!(room.available_permits(), 44);

        let second = read(Body::from(vec![b' '; 45 * KIB])).await.unwrap();
        assert_eq!(second.unwrap_err(), Unread::NoRoom);
        let small = read(Body::from(vec![b' '; SMALL_BODY])).await.unwrap().unwrap();
        assert!(small.room.is_none());
        let other = read(Body::from(vec![b' '; 44 * KIB])).await.unwrap().unwrap();
        assert_eq!((other.bytes.len(), room.available_permits()), (44 * KIB, 0));
        drop(other);
        let refused = read(Body::from(vec![b' '; 300 * KIB])).await.unwrap();
        assert_eq!(refused.unwrap_err(), Unread::TooLong, "nothing of it is kept");

        drop(first);
        let second = read(Body::from(vec![b' '; 256 * KIB])).await.unwrap().unwrap();
        assert_eq!((second.bytes.len(), room.available_permits()), (256 * KIB, 44));
    }
}
