use std::time::Duration;

use domain::{
    CodeHash, Counter, KeyId, Message, MessageId, Origin, PhoneNumber, Policy, Region,
    VerificationId, VerificationStatus, Windows,
};

use crate::{
    TraceParent,
    ports::{
        AnswerClaim, History, NewSecret, NewVerification, Noted, Receipt, StoreError, Verification,
        Violation,
    },
};

/// Verifications after their first message.
///
/// All times are those of the database clock. A verification ends when it expires, whether or not
/// [`Housekeeping::expire`](crate::ports::Housekeeping::expire) has ended it: it is read as expired,
/// and no method takes it for pending. The secret of its code is wiped when a verification ends.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Verifications: Sync + 'static {
    async fn find(&self, id: VerificationId) -> Result<Option<Verification>, StoreError>;

    /// Returns a verification with its events in order, read from its row and the rows of its
    /// messages.
    async fn history(&self, id: VerificationId) -> Result<Option<History>, StoreError>;

    /// Stores one more message of a pending verification, if the windows of its phone and all
    /// counters have room. If a limit is reached, no counter moves.
    ///
    /// The message may be sent until the verification expires. The verification becomes the newest of
    /// its phone again.
    async fn resend(&self, again: Resend) -> Result<Resent, StoreError>;

    /// Returns the newest verification of a phone from each origin, if it is pending.
    async fn newest(&self, phone: PhoneNumber) -> Result<Newest, StoreError>;

    /// Counts an attempt on its verification and, under each of `guesses`, on the phone. If the code
    /// is right, also ends the verification as approved and deletes the guesses at it, but no other
    /// guesses at its phone.
    ///
    /// All of this is one commit: an attempt that was not counted decides nothing, and a right code
    /// is not lost. For each verification, exactly one attempt is ever [`CheckOutcome::Right`].
    ///
    /// By phone, the code is tried against the newest verification of each origin, and a wrong code is
    /// counted on both. A guess is counted whether or not a verification exists, and the work is the
    /// same in all cases. A guess at the verification of a test number is not counted on its phone.
    ///
    /// Guesses at verifications of `/v1`, guesses at those of `/api`, and guesses by phone without a
    /// verification have separate windows. A verification whose windows are used up is not tried. If
    /// none can be tried for that reason, nothing is counted and nothing is written. If a concurrent
    /// guess uses up a window, an earlier window may already be counted.
    async fn check(&self, attempt: Attempt, guesses: &[Policy])
    -> Result<CheckOutcome, StoreError>;

    /// Ends a verification as canceled, if it is pending. Returns its state after that, or `None` if it
    /// does not exist.
    ///
    /// Guesses at its phone stay counted. Its messages that wait in a ledger expire with it, and so
    /// does the latest message if no relay has claimed it.
    async fn cancel(&self, id: VerificationId) -> Result<Option<History>, StoreError>;

    /// Begins a verification of a test number. Nothing is sent and nothing is counted. The
    /// verification becomes the newest of its phone.
    async fn start_test(&self, test: NewTest) -> Result<Verification, StoreError>;

    /// Stores a delivery receipt on the entries of all groups that called the gateway for `message`.
    /// Returns [`Noted::Unknown`] if no group did.
    ///
    /// Once this returns any other result, the receipt is stored. It may arrive before the outcome of the
    /// call is recorded; this does not wait for the outcome. Receipts may arrive twice and in any
    /// order: the first of each kind counts, and `Undelivered` is ignored after `Delivered`.
    async fn note_receipt(&self, message: MessageId, receipt: Receipt)
    -> Result<Noted, StoreError>;
}

/// One more message of a verification.
#[derive(Debug, Clone)]
pub struct Resend {
    pub id: VerificationId,
    /// The number of earlier messages. If it has changed, nothing is stored.
    pub sends: u8,
    /// The time that must have passed since the latest message was stored.
    pub wait: Duration,
    /// The message. Its id is [`VerificationId::message`] of `sends + 1`.
    pub message: Message,
    pub trace: TraceParent,
    /// What to store from now on, if the code is new.
    pub secret: Option<NewSecret>,
    pub phone_limits: Windows,
    pub extra: Vec<Counter>,
    /// The claim of the request. The same commit records on it that the message was stored.
    pub claim: Option<AnswerClaim>,
}

/// The result of [`Verifications::resend`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resent {
    /// The message is stored. This is the verification after that.
    Sent(Box<Verification>),
    /// The limits that are reached: at least one.
    Limited(Vec<Violation>),
    /// The verification has changed since the caller read it: it has ended, it has no attempts left,
    /// another message was stored, or the wait is not over. Or another holder of the claim has sent.
    Changed,
}

/// One try of a code.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub target: Target,
    /// The hash of the code with each pepper of this process, for the target. By phone, for the
    /// verification of `/v1`.
    pub hashes: Vec<(KeyId, CodeHash)>,
    /// By phone, the hashes for the verification of `/api`. By id, empty.
    pub api_hashes: Vec<(KeyId, CodeHash)>,
    /// The claim of the request. The same commit records on it that the code was right.
    pub claim: Option<AnswerClaim>,
}

/// The verification that a code is tried against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Id(VerificationId),
    /// By phone: the result of [`Verifications::newest`].
    Newest {
        phone: PhoneNumber,
        of: Newest,
    },
}

/// The newest verification of a phone from each origin, if it is pending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// The verification of `/v1` or of a test number.
    pub v1: Option<VerificationId>,
    pub api: Option<VerificationId>,
}

/// The result of [`Verifications::check`].
#[derive(Debug, Clone)]
pub enum CheckOutcome {
    /// The attempt is counted, and it approved the verification.
    Right(Approval),
    /// The attempt is counted. `attempts` includes it. The code was made with `pepper`.
    Wrong { attempts: u8, pepper: KeyId },
    /// By phone: the guess is counted, and there is nothing to try it against. The reason is not
    /// disclosed.
    Nothing,
    /// By id: no such verification exists.
    Unknown,
    /// By id: the verification was approved before.
    Approved,
    /// By id: the verification has ended in this state.
    Gone(VerificationStatus),
    /// By id: no attempts are left. The verification expires after `retry_after`; its whole time to
    /// live is `ttl`.
    Exhausted { retry_after: Duration, ttl: Duration },
    /// Too many guesses at the phone, whether or not it has a verification.
    Limited(Vec<Violation>),
    /// Nothing is decided, because the target has changed since it was read.
    Changed,
}

/// The verification that was approved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    pub id: VerificationId,
    pub origin: Origin,
    pub phone: PhoneNumber,
    pub region: Option<Region>,
}

/// A verification of a test number.
#[derive(Debug, Clone)]
pub struct NewTest {
    pub id: VerificationId,
    pub phone: PhoneNumber,
    pub ttl: Duration,
    /// The new verification. Its origin is [`Origin::Test`].
    pub verification: NewVerification,
}
