use std::time::{Duration, SystemTime};

use domain::{Counter, Message, PhoneNumber, Policy, VerificationId, Windows};

use crate::{
    TraceParent,
    ports::{NewVerification, StoreError, Verification},
};

/// Where verifications begin and their messages are stored, in the order of their acceptance.
#[cfg_attr(any(test, feature = "mocks"), mockall::automock)]
#[trait_variant::make(Send)]
pub trait Outbox: Sync + 'static {
    /// Begins a verification and stores its first message, which may be sent for `ttl` from now, by
    /// the database's clock; if the windows of its phone and all its counters have room.
    ///
    /// Otherwise nothing of it is stored and no counter moves. The same holds for one of
    /// [`Origin::V1`] to a phone whose newest verification of [`Origin::V1`] is pending: the answer is
    /// that one. One of [`Origin::Api`] is never answered so. The newest verification of the phone
    /// and the origin is this one from here on.
    ///
    /// Once this returns [`Enqueued::Accepted`], both survive a crash of any process and of the
    /// database. After an error they may have been stored all the same. Calls that wait together
    /// may be committed together, and then what the database refuses fails its own call only; sends
    /// to one phone are counted each, and no quota is passed however many race. A call that is
    /// dropped leaves nothing half done.
    async fn enqueue(&self, send: NewSend) -> Result<Enqueued, StoreError>;
}

/// A verification and its first message.
#[derive(Debug, Clone)]
pub struct NewSend {
    /// Its id is [`domain::VerificationId::message`] of 1; with that it says which verification
    /// begins. Its phone is written as the gateway is to have it.
    pub message: Message,
    /// What the verification is found and counted by: the one form of the message's phone.
    pub phone: PhoneNumber,
    /// How long the code is good, and so how long the message may be sent.
    pub ttl: Duration,
    pub trace: TraceParent,
    pub verification: NewVerification,
    pub phone_limits: Windows,
    /// Whether the windows of the phone are those of sends which say so only.
    pub apart: bool,
    pub extra: Vec<Counter>,
}

/// What became of a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enqueued {
    /// It is stored. `at` is the database's now, from which on it may be sent.
    Accepted { at: SystemTime },
    /// One is pending for this phone.
    Pending(Box<Verification>),
    /// There was no room in these; at least one.
    Limited(Vec<Violation>),
}

/// A window that is used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub policy: Policy,
    /// Until it has passed.
    pub retry_after: Duration,
}

impl NewSend {
    /// The verification as it is right after [`Outbox::enqueue`] has accepted it.
    pub fn accepted(&self, at: SystemTime) -> Verification {
        let id = VerificationId::of(self.message.id);
        Verification::begun(id, self.phone.clone(), self.ttl, &self.verification, at)
    }
}
