use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use domain::{Counter, Message, PhoneNumber, Policy, VerificationId, Windows};

use crate::{
    TraceParent,
    ports::{NewVerification, StoreError, Verification},
};

/// The outbox: verifications begin here, and their messages are stored in the order of acceptance.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Outbox: Sync + 'static {
    /// Begins a verification and stores its first message, if the windows of its phone and all its
    /// counters have room. The message may be sent for `ttl` from now, by the database clock.
    ///
    /// If a limit is reached, nothing is stored and no counter moves. The same applies to a
    /// verification of [`Origin::V1`](domain::Origin::V1) whose phone has a pending newest
    /// verification of that origin: the call returns the pending one. A verification of
    /// [`Origin::Api`](domain::Origin::Api) never does. A verification that is stored becomes the
    /// newest of its phone and origin.
    ///
    /// Once this returns [`Enqueued::Accepted`], both survive a crash of any process and of the
    /// database. After an error they may have been stored. Calls that wait at the same time may be
    /// committed together; if the database refuses one of them, only that call fails. Every message
    /// to a phone is counted, and no quota is exceeded, however many calls race. A call that is
    /// dropped is stored completely or not at all.
    ///
    /// [`NewSend::storing`] has begun from before the message may be stored until it is certain that
    /// nothing was stored. This also holds after a call that was dropped.
    async fn enqueue(&self, send: NewSend) -> Result<Enqueued, StoreError>;
}

/// A verification and its first message.
#[derive(Debug, Clone)]
pub struct NewSend {
    /// The message. Its id is [`VerificationId::message`] of 1, which determines the id of the
    /// verification. Its phone has the form that the gateway receives.
    pub message: Message,
    /// The canonical form of the message's phone. The verification is found and counted by it.
    pub phone: PhoneNumber,
    /// The time to live of the code, and so of the message.
    pub ttl: Duration,
    pub trace: TraceParent,
    pub verification: NewVerification,
    pub phone_limits: Windows,
    /// Whether the windows of the phone count separately, for messages with this flag only.
    pub apart: bool,
    /// The counters besides those of the phone.
    pub extra: Vec<Counter>,
    pub storing: Storing,
}

/// Whether the outbox has begun to store a message.
///
/// Clones share one state: the caller may be gone when the outbox learns the answer.
#[derive(Debug, Clone, Default)]
pub struct Storing(Arc<AtomicBool>);

/// The result of [`Outbox::enqueue`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enqueued {
    /// The message is stored. `at` is the time of the database clock, from which it may be sent.
    Accepted { at: SystemTime },
    /// This verification is already pending for the phone.
    Pending(Box<Verification>),
    /// The limits that are reached: at least one.
    Limited(Vec<Violation>),
}

/// A limit that is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub policy: Policy,
    /// The time until the window ends.
    pub retry_after: Duration,
}

impl Storing {
    /// Notes that the message may be stored from now on.
    pub fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Notes that nothing was stored.
    pub fn undo(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl NewSend {
    /// Returns the verification as it is right after [`Outbox::enqueue`] accepted it.
    pub fn accepted(&self, at: SystemTime) -> Verification {
        let id = VerificationId::of(self.message.id);
        Verification::begun(id, self.phone.clone(), self.ttl, &self.verification, at)
    }
}
