//! Requests and calls, as clients and the gateway hand them to a recorder.

use std::fmt;

use serde::Serialize;

use super::clock::Moment;

/// Records requests and calls.
///
/// There are two recorders, because an overload has millions of messages: `kit::tally` keeps a few
/// bytes of each, and `chaos::history` keeps everything for the checker.
pub trait Recorder: Clone + Send + Sync + 'static {
    /// Records a request that has ended.
    fn answered(&self, request: &Request<'_>);

    /// Records the beginning of a call. Returns its number for [`Self::call_ended`].
    fn called(&self, call: &Call<'_>) -> usize;

    /// Records the end of a call. `is_whole` is false if the answer was broken off.
    fn call_ended(&self, number: usize, is_whole: bool);
}

/// A request to the API that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub phone: &'a str,
    pub asked_at: Moment,
    pub ended_at: Moment,
    pub reply: Reply,
    /// The improper answer, or the error.
    pub detail: Option<&'a str>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// It has not ended yet.
    #[default]
    Pending,
    /// 200: the service must deliver the message.
    Accepted,
    /// 503 with `Retry-After`. The message may have been stored.
    Refused,
    /// No API had a listener.
    Nowhere,
    /// A connection made for this request ended without an answer. The message may have been
    /// stored.
    Lost,
    /// The same on a connection kept from an earlier request.
    LostOnKept,
    /// No answer within the limit, on a connection that stayed open.
    Silent,
    /// The client went away on purpose.
    Left,
    /// An answer that the API never gives.
    Illegal,
}

/// A call of the gateway.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The idempotency key.
    pub key: &'a str,
    /// The id in the body.
    pub id: &'a str,
    pub phone: &'a str,
    pub code: &'a str,
    /// The place of the gateway among those of the testbed.
    pub gateway: usize,
    pub kind: GatewayKind,
    pub answer: Answer,
    /// Whether the gateway took the SMS, and would be paid for it.
    pub paid: bool,
}

/// Whether a gateway recognises a message that it already has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewayKind {
    /// It recognises the message by its idempotency key, and takes it once.
    Idempotent,
    /// It takes every message that comes.
    Plain,
}

/// What `[failover] ambiguous` says: where a message goes after a call without a clear outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterAmbiguous {
    /// To no other gateway.
    #[default]
    Same,
    /// To the next gateway, which may take it a second time.
    Next,
}

/// How a gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    Accept,
    /// 500. Every second time the gateway takes the SMS before.
    Error,
    /// 429 with `Retry-After`.
    Throttle,
    /// 503 with `Retry-After`.
    Unavailable,
    /// Takes the SMS and says so after half a minute.
    Late,
    /// Takes the SMS and resets the connection.
    Reset,
    /// Takes the SMS and answers a byte at a time.
    Drip,
    /// Takes the SMS and answers bytes that are not HTTP.
    Noise,
    /// Takes the SMS and answers 200 with a body that is not JSON.
    BadBody,
    /// 400, as for a number that the gateway refuses.
    Refuse,
    /// 401, as for an account that is closed.
    Deny,
    /// 200 with an error in the body.
    ErrorInside,
    /// No answer: nothing listens, so the connection is refused.
    Down,
}

impl fmt::Display for GatewayKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idempotent => "idempotent",
            Self::Plain => "plain",
        })
    }
}

impl fmt::Display for AfterAmbiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same",
            Self::Next => "next",
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Error => "500",
            Self::Throttle => "429",
            Self::Unavailable => "503",
            Self::Late => "late",
            Self::Reset => "reset",
            Self::Drip => "drip",
            Self::Noise => "noise",
            Self::BadBody => "bad-body",
            Self::Refuse => "400",
            Self::Deny => "401",
            Self::ErrorInside => "200-error",
            Self::Down => "refused",
        })
    }
}
