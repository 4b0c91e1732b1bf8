//! What the service does, and what it needs from outside.
//!
//! A use case is a struct with one `execute` (or, where work runs on while it waits, `wait` and
//! `act`): one round, which returns what happened. Loops, timers and signals are in `bootstrap`.
//! The ports are what the use cases need, in their own words; adapters implement them.

mod authorize;
mod check;
mod deliver;
mod error;
mod events;
mod guard;
mod issue;
pub mod ports;
mod relay;
mod repeat;
mod replay;
mod resend;
mod retry;
mod rules;
mod share;
mod start;
mod submit;
#[cfg(test)]
mod testing;
mod trace;
mod vault;
mod verification;

pub use authorize::{Authorize, AuthorizeError};
pub use check::{CheckCode, CheckError, Checked, CodeOf};
pub use deliver::{DeliverMessages, DeliverSettings, Delivered};
pub use error::{BoxError, Chain};
pub use events::{DeliverEvents, EventSettings, Told};
pub use guard::{FlushGuard, Flushed, Guard, Passed, Verdict};
pub use issue::Clock;
pub use relay::{RelayBatch, RelayError, RelaySettings, Relayed};
pub use repeat::{AnswerError, AnswerOnce, Repeatable};
pub use replay::{ReplayGuard, Replayed};
pub use resend::{Caller, ResendError, ResendPolicy, ResendVerification, SendSettings};
pub use retry::{Retried, RetryDeadLetter, RetryError};
pub use rules::{Counting, SendRules};
pub use share::{SharePartitions, ShareSettings, Shared};
pub use start::{StartError, StartRequest, StartVerification};
pub use submit::{Submission, SubmitError, SubmitMessage, SubmitSettings};
pub use trace::{InvalidTraceParent, TraceParent};
pub use vault::{
    CODE_PEPPER, DrawnKeys, KeySource, Keys, OpenError, OpenVault, PAYLOAD_KEY, Vault, VaultClosed,
    VaultSettings,
};
pub use verification::{CancelError, CancelVerification, FindVerification, NoteReceipt};
