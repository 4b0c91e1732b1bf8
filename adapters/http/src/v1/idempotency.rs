//! `Idempotency-Key`: a repeated request is executed once.

use std::panic::AssertUnwindSafe;

use application::{
    AnswerError, Chain, Repeatable,
    ports::{AnswerClaim, Begun},
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use futures_util::FutureExt;

use super::{
    problem::{Fault, Problem, ProblemKind},
    reply::Reply,
    use_cases::UseCases,
};

pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";
pub(super) const MAX_KEY: usize = 255;

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Returns the key of a request, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let visible = |byte: &u8| byte.is_ascii_graphic();
    let fits = (1..=MAX_KEY).contains(&value.len())
        && value.as_bytes().iter().all(visible)
        && values.next().is_none();
    match value.to_str() {
        Ok(key) if fits => Ok(Some(key)),
        _ => {
            let rule = "must be a single header of 1 to 255 visible ASCII characters";
            Err(Problem::invalid(&[Fault::in_header(IDEMPOTENCY_KEY, rule)]))
        }
    }
}

/// Executes `work`, or replays the answer of an earlier request with this key.
///
/// It must run in a task of its own: if it is dropped halfway, the key is taken for two minutes.
pub(super) async fn once<W: Future<Output = Result<Reply, Problem>>>(
    answers: &dyn UseCases,
    request: Repeatable<'_>,
    body: &[u8],
    work: impl Fn(AnswerClaim) -> W,
) -> Result<Result<Reply, Problem>, AnswerError> {
    let claim = match answers.begin(request, body).await? {
        Begun::Ours(claim) => claim,
        Begun::Other => return Ok(Err(ProblemKind::IdempotencyMismatch.into())),
        Begun::Running => return Ok(Err(ProblemKind::IdempotencyRunning.into())),
        Begun::Answered(answer) => {
            let mut reply = Reply::kept(answer);
            reply.headers.insert(REPLAYED, HeaderValue::from_static("true"));
            return Ok(Ok(reply));
        }
    };
    let act = async |claim: AnswerClaim| {
        // A panic cannot leave broken state: only use cases are shared, and they have none between
        // calls.
        let done = AssertUnwindSafe(work(claim)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!("a request's handler panicked");
            Err(ProblemKind::Internal.into())
        });
        done.unwrap_or_else(|problem| problem.reply(request.path))
    };
    let mut reply = act(claim.clone()).await;
    if claim.is_taken_over() && claim.done.is_none() {
        // The earlier holder of the claim may have finished its work in the meantime, which would
        // explain our failure.
        match answers.done(&claim).await {
            Ok(None) => {}
            Ok(done) => reply = act(AnswerClaim { done, ..claim.clone() }).await,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot find out what the earlier request with this Idempotency-Key did");
                reply = Problem::from(ProblemKind::ReducedCapacity).reply(request.path);
            }
        }
    }
    let stored = match fate(reply.status) {
        Fate::Kept => answers.keep(&claim, &reply.to_keep()).await,
        Fate::Forgotten if !claim.is_taken_over() => answers.forget(&claim).await,
        // The earlier holder of the claim may still be working.
        Fate::Forgotten | Fate::GivenUp => answers.give_up(&claim).await,
    };
    if let Err(error) = stored {
        tracing::warn!(error = %Chain(&error), "cannot store an answer for its Idempotency-Key");
    }
    Ok(Ok(reply))
}

/// How an answer is treated.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    /// Nothing was done, and a repeated request may succeed.
    Forgotten,
    /// It is unknown whether anything was done.
    GivenUp,
}

fn fate(status: StatusCode) -> Fate {
    let temporary = [
        StatusCode::TOO_MANY_REQUESTS,
        // The guard or a setting refused it, and both may change.
        StatusCode::FORBIDDEN,
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
    ];
    if status.is_server_error() {
        Fate::GivenUp
    } else if temporary.contains(&status) {
        Fate::Forgotten
    } else {
        Fate::Kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_1_to_255_visible_ascii_characters() {
        #[track_caller]
        fn check(values: &[&[u8]], expected: Result<Option<&str>, ()>) {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(key(&headers).map_err(|_| ()), expected);
        }

        check(&[], Ok(None));
        check(&[b"a"], Ok(Some("a")));
        check(&[b"\"8e03978e-40d5\""], Ok(Some("\"8e03978e-40d5\"")));
        check(&[&[b'k'; 255]], Ok(Some(&"k".repeat(255))));
        check(&[&[b'k'; 256]], Err(()));
        check(&[b""], Err(()));
        check(&[b"a b"], Err(()));
        check(&["ы".as_bytes()], Err(()));
        check(&[b"a", b"a"], Err(()));
    }

    #[test]
    fn only_final_answers_are_kept() {
        #[track_caller]
        fn check(statuses: &[u16], expected: &Fate) {
            for status in statuses {
                let found = fate(StatusCode::from_u16(*status).unwrap());
                assert_eq!(found, *expected, "{status}");
            }
        }

        check(&[200, 202, 400, 404, 409, 410, 422], &Fate::Kept);
        check(&[403, 415, 429], &Fate::Forgotten);
        check(&[500, 503], &Fate::GivenUp);
    }
}
