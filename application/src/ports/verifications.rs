use std::time::Duration;

use domain::{
    CodeHash, Counter, KeyId, Message, MessageId, Origin, PhoneNumber, Policy, Region,
    VerificationId, VerificationStatus, Windows,
};

use crate::{
    TraceParent,
    ports::{
        AnswerClaim, History, NewSecret, NewVerification, Receipt, StoreError, Verification,
        Violation,
    },
};

/// Verifications after their first message.
///
/// All times are the database's. A verification is over when its time is up, whether or not
/// [`Housekeeping::expire`](crate::ports::Housekeeping::expire) has been there: it is shown as expired, and nothing below takes it for
/// pending. What is kept of a code is wiped when its verification ends.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Verifications: Sync + 'static {
    async fn find(&self, id: VerificationId) -> Result<Option<Verification>, StoreError>;

    /// A verification with its events, in their order: what its own row and those of its messages
    /// say now.
    async fn history(&self, id: VerificationId) -> Result<Option<History>, StoreError>;

    /// Stores one more message of a pending verification, if the windows of its phone and all
    /// counters have room; otherwise no counter moves.
    ///
    /// The message may be sent as long as the verification lasts. The verification is the newest
    /// of its phone again.
    async fn resend(&self, again: Resend) -> Result<Resent, StoreError>;

    /// The newest verification of a phone from each door, if it is pending.
    async fn newest(&self, phone: PhoneNumber) -> Result<Newest, StoreError>;

    /// Counts an attempt on its verification, and under each of `guesses` on the phone; and where
    /// it is right, ends the verification as approved and forgets the guesses at it, and no others
    /// at its phone. All in one commit: an attempt that was not counted decides nothing, and a
    /// right one is not lost. Of all that are right, exactly one is ever [`CheckOutcome::Right`].
    ///
    /// By phone the code is tried against the newest verification of each door, and a wrong one is
    /// counted on both. A guess is counted whether or not there is a verification, and whatever
    /// there is, the work is the same. A guess at a test number's verification is not counted on its
    /// phone.
    ///
    /// Guesses at verifications of `/v1`, at those of `/api`, and by phone where there is none, have
    /// windows of their own. A verification whose windows are used up is not tried. Where none can be
    /// tried for that, nothing is counted and nothing is written; where another guess uses a window
    /// up in this moment, a window before it may be counted all the same.
    async fn check(&self, attempt: Attempt, guesses: &[Policy])
    -> Result<CheckOutcome, StoreError>;

    /// Ends a verification as canceled, if it is pending, and returns what it then is; none if
    /// there is none. The guesses of its phone stay counted. Of its messages, what waits in a ledger
    /// expires with it, and the latest if no relay has had it.
    async fn cancel(&self, id: VerificationId) -> Result<Option<History>, StoreError>;

    /// Begins a verification of a test number: nothing is sent, nothing is counted. It is the
    /// newest of its phone.
    async fn start_test(&self, test: NewTest) -> Result<Verification, StoreError>;

    /// Notes what a gateway tells of a message that it was called for, on the entries of all groups
    /// that called. False: nobody did, so there is nothing to note it on.
    ///
    /// Once this returns `Ok`, it is kept. It may come before the outcome of the call is recorded,
    /// which is not waited for. Of each kind the first counts, and `Undelivered` does not after
    /// `Delivered`: both may come twice, and in any order.
    async fn note_receipt(&self, message: MessageId, receipt: Receipt) -> Result<bool, StoreError>;
}

/// One more message of a verification.
#[derive(Debug, Clone)]
pub struct Resend {
    pub id: VerificationId,
    /// How many messages there are without this one. If there are others, nothing is stored.
    pub sends: u8,
    /// How long ago the latest must have been stored.
    pub wait: Duration,
    /// Its id is [`VerificationId::message`] of `sends + 1`.
    pub message: Message,
    pub trace: TraceParent,
    /// Where the code is another than before: what is kept from now on.
    pub secret: Option<NewSecret>,
    pub phone_limits: Windows,
    pub extra: Vec<Counter>,
    /// Under which it is sent: its holders learn of it, by the same commit.
    pub claim: Option<AnswerClaim>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resent {
    /// It is stored: the verification as it is now.
    Sent(Box<Verification>),
    Limited(Vec<Violation>),
    /// The verification is not what the caller took it for: it has ended, has no attempts left,
    /// another message was stored, or the wait is not over. Or another holder of the claim has sent.
    Changed,
}

/// A code that is tried.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub target: Target,
    /// What is kept of the target if the code is its code: for each pepper of this process, the
    /// hash that it makes. By phone, of what `/v1` began.
    pub hashes: Vec<(KeyId, CodeHash)>,
    /// By phone, of what `/api` began; by id, none.
    pub api_hashes: Vec<(KeyId, CodeHash)>,
    /// Under which it is tried: its holders learn, by the same commit, that it was right.
    pub claim: Option<AnswerClaim>,
}

/// What a code is tried against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Id(VerificationId),
    /// By phone: what [`Verifications::newest`] has told of it.
    Newest {
        phone: PhoneNumber,
        of: Newest,
    },
}

/// The newest verifications of a phone, as far as they are pending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// Of `/v1`, or of a test number.
    pub v1: Option<VerificationId>,
    pub api: Option<VerificationId>,
}

/// What became of an attempt.
#[derive(Debug, Clone)]
pub enum CheckOutcome {
    /// It is counted, and the verification is approved by it.
    Right(Approval),
    /// It is counted: `attempts` with this one. What is kept was made with `pepper`.
    Wrong { attempts: u8, pepper: KeyId },
    /// By phone: the guess is counted, there is nothing to try it against, and it is not said why.
    Nothing,
    /// By id: there is no such verification.
    Unknown,
    /// By id: it was approved before.
    Approved,
    /// By id: it has ended so.
    Gone(VerificationStatus),
    /// By id: it has no attempts left until it expires, after `retry_after`; it lasts `ttl` in all.
    Exhausted { retry_after: Duration, ttl: Duration },
    /// Too many guesses at the phone; known or not.
    Limited(Vec<Violation>),
    /// Nothing is decided: others have changed the target in between.
    Changed,
}

/// What was approved.
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
    /// Of [`Origin::Test`].
    pub verification: NewVerification,
}
