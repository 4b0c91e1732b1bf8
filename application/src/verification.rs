//! Verifications: codes are issued, sent again, checked and canceled here, within the rules of the
//! request's origin and of the guard.

mod caller;
mod cancel;
mod check;
mod elsewhere;
mod events;
mod find;
mod guard;
mod idempotency;
mod issue;
mod receipts;
mod resend;
mod rules;
mod sender;
mod start;

pub use self::{
    caller::Caller,
    cancel::{CancelError, CancelVerification},
    check::{Approved, CheckCode, CheckError, Checked, CodeOf},
    elsewhere::{SendElsewhere, SentElsewhere},
    events::{DeliverEvents, EventSettings, Posted},
    find::FindVerification,
    guard::{Admission, FlushGuard, Flushed, Guard, ReplayGuard, Replayed, SendPermit},
    idempotency::{AnswerError, AnswerOnce, Repeatable},
    issue::{Clock, ResendPolicy},
    receipts::{AskStatus, Asked, NoteGatewayReceipt, NoteReceipt, ReceiptUrls},
    resend::ResendVerification,
    rules::{Counting, SendRules},
    sender::{CodeSender, ResendError, SendSettings},
    start::{StartError, StartRequest, StartVerification},
};
pub(crate) use self::{
    issue::{IssueRequest, Issuer},
    rules::Refusal,
};
