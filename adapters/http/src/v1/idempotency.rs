//! `Idempotency-Key`: a request that is repeated is done once.

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

/// The key of a request, if it has one.
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
            let rule = "must be one header of 1 to 255 visible ASCII characters";
            Err(Problem::invalid(&[Fault::in_header(IDEMPOTENCY_KEY, rule)]))
        }
    }
}

/// Does `work` unless it was done under this key before: then its answer is given again.
///
/// Run in a task of its own: dropped in the middle, the key would be taken for two minutes.
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
        // Nothing is shared with the work but use cases, which are whole between two calls.
        let done = AssertUnwindSafe(work(claim)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!("a request's handler panicked");
            Err(ProblemKind::Internal.into())
        });
        done.unwrap_or_else(|problem| problem.reply(request.path))
    };
    let mut reply = act(claim.clone()).await;
    if claim.is_taken_over() && claim.done.is_none() {
        // What was begun under the claim before may have been done since, which is why there was
        // nothing left for us.
        match answers.done(&claim).await {
            Ok(None) => {}
            Ok(done) => reply = act(AnswerClaim { done, ..claim.clone() }).await,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "what was done before is not known");
                reply = Problem::from(ProblemKind::ReducedCapacity).reply(request.path);
            }
        }
    }
    let stored = match fate(reply.status) {
        Fate::Kept => answers.keep(&claim, &reply.to_keep()).await,
        Fate::Forgotten if !claim.is_taken_over() => answers.forget(&claim).await,
        // Whoever was before us may still be at it.
        Fate::Forgotten | Fate::GivenUp => answers.give_up(&claim).await,
    };
    if let Err(error) = stored {
        tracing::warn!(error = %Chain(&error), "an answer is not kept for those who ask again");
    }
    Ok(Ok(reply))
}

/// What becomes of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    /// It may be better the next time, or hangs on more than key and body. Nothing was done.
    Forgotten,
    /// Whether something was done is not known.
    GivenUp,
}

fn fate(status: StatusCode) -> Fate {
    let passing = [
        StatusCode::TOO_MANY_REQUESTS,
        // By the guard, or by a setting.
        StatusCode::FORBIDDEN,
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
    ];
    if status.is_server_error() {
        Fate::GivenUp
    } else if passing.contains(&status) {
        Fate::Forgotten
    } else {
        Fate::Kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_visible_ascii() {
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
    fn what_passes_is_not_kept() {
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
