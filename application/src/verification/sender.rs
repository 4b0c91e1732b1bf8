use std::{sync::Arc, time::Duration};

use domain::{
    ATTEMPTS, Code, Message, Origin, Pacing, Policy, Recipient, VerificationId, VerificationStatus,
    Window,
};
use rand_core::CryptoRng;

use super::{
    Admission, Caller, Clock, Guard, IssueRequest, Issuer, Refusal, ResendPolicy, SendPermit,
    SendRules,
};
use crate::{
    BoxError, TraceParent, Vault, VaultClosed,
    ports::{
        Event, EventKind, History, NewSend, NewTest, Resend, Resent, StoreError, Storing,
        Verification, Verifications, Violation,
    },
};

/// Sends codes of `/v1`: what starting a verification and resending its code have in common.
#[derive(Debug)]
pub struct CodeSender<V, R> {
    verifications: Arc<V>,
    issuer: Issuer<R>,
    guard: Arc<Guard>,
    settings: SendSettings,
}

/// The rules for the first message of a verification and for each resend.
#[derive(Debug, Clone, Default)]
pub struct SendSettings {
    pub rules: SendRules,
    pub pacing: Pacing,
    pub resend_policy: ResendPolicy,
}

/// The reason why a code was not sent again.
#[derive(Debug, thiserror::Error)]
pub enum ResendError {
    #[error("no such verification")]
    Unknown,
    #[error("the verification is approved")]
    AlreadyApproved,
    #[error("the verification has ended")]
    Gone(VerificationStatus),
    /// The limits that are reached: at least one.
    #[error("a limit is reached")]
    Limited(Vec<Violation>),
    /// Every gateway that can take the message has used its daily budget up.
    #[error("the daily budget is used up")]
    BudgetExhausted,
    /// The guard blocked the message.
    #[error("refused")]
    Blocked,
    #[error("too much work is waiting to be stored")]
    Full,
    /// The message may have been stored.
    #[error("the message was not stored")]
    Unavailable(#[source] BoxError),
}

impl<V: Verifications, R: CryptoRng + Send + 'static> CodeSender<V, R> {
    /// `rng` must be seeded from the operating system: ids and codes are drawn from it.
    pub fn new(
        verifications: Arc<V>,
        clock: Clock,
        rng: R,
        vault: Vault,
        guard: Arc<Guard>,
        settings: SendSettings,
    ) -> Self {
        Self { verifications, issuer: Issuer::new(clock, rng, vault), guard, settings }
    }

    pub(super) fn rules(&self) -> &SendRules {
        &self.settings.rules
    }

    /// Decides whether a verification may begin.
    pub(super) fn admit(&self, to: &Recipient) -> Result<SendPermit, Refusal> {
        self.rules().admit(&self.guard, Origin::V1, to, to.phone())
    }

    /// Issues the code and the first message of a verification.
    pub(super) fn issue(&self, request: IssueRequest) -> Result<NewSend, VaultClosed> {
        self.issuer.first(request)
    }

    /// Issues a verification of a test number, whose code is given.
    pub(super) fn issue_test(
        &self,
        request: IssueRequest,
        code: &Code,
    ) -> Result<NewTest, VaultClosed> {
        self.issuer.test(request, code)
    }

    /// Stores a verification of a test number.
    pub(super) async fn start_test(&self, test: NewTest) -> Result<Verification, StoreError> {
        self.verifications.start_test(test).await
    }

    pub(super) async fn find(&self, id: VerificationId) -> Result<Verification, ResendError> {
        self.verifications.find(id).await?.ok_or(ResendError::Unknown)
    }

    /// Finds what an earlier holder of the caller's claim did without answering: the verification
    /// that it began, or that it sent a message of.
    pub(super) async fn find_done(&self, caller: &Caller) -> Result<Option<History>, StoreError> {
        match &caller.claim {
            Some(claim) if claim.is_taken_over() => {
                let id = claim.done.unwrap_or_else(|| claim.begins());
                self.verifications.history(id).await
            }
            _ => Ok(None),
        }
    }

    /// Checks that the state of a verification and the waits between its messages allow a resend.
    pub(super) fn check_resend(&self, verification: &Verification) -> Result<(), ResendError> {
        match verification.status {
            // Nothing is sent to a test number, so nothing limits it.
            VerificationStatus::Pending if verification.is_test() => return Ok(()),
            VerificationStatus::Pending => {}
            VerificationStatus::Approved => return Err(ResendError::AlreadyApproved),
            ended => return Err(ResendError::Gone(ended)),
        }
        let until_it_expires = |name, quota| {
            let policy = Policy::named(name, Window { quota, period: verification.ttl() });
            limited(policy, verification.good_for())
        };
        // A code that can no longer be tried is not sent.
        if verification.attempts >= ATTEMPTS {
            return Err(until_it_expires("attempts", ATTEMPTS.into()));
        }
        let pacing = &self.settings.pacing;
        let Some(wait) = pacing.wait_after(verification.asked_sends()) else {
            return Err(until_it_expires("sends", pacing.sends_max().into()));
        };
        match wait.checked_sub(verification.since_sent()) {
            Some(rest) if !rest.is_zero() => {
                Err(limited(Policy::named("resend", Window { quota: 1, period: wait }), rest))
            }
            _ => Ok(()),
        }
    }

    /// Asks the budgets and the guard whether one more message of a verification may be sent.
    pub(super) fn admit_resend(
        &self,
        verification: &Verification,
    ) -> Result<SendPermit, ResendError> {
        let Verification { origin, phone, region, .. } = verification;
        if !verification.is_test() && self.rules().afford(*origin, phone).is_err() {
            return Err(ResendError::BudgetExhausted);
        }
        match self.guard.decide(*origin, phone, *region) {
            Admission::Passed(permit) => Ok(permit),
            Admission::Blocked => Err(ResendError::Blocked),
        }
    }

    /// Stores one more message of a verification that passed [`Self::check_resend`].
    ///
    /// Returns `None` if the verification has changed since it was read.
    pub(super) async fn resend(
        &self,
        verification: &Verification,
        permit: SendPermit,
        caller: &Caller,
    ) -> Result<Option<Verification>, ResendError> {
        if verification.is_test() {
            return Ok(Some(verification.clone()));
        }
        let Verification { id, sends, .. } = *verification;
        let wait = self.settings.pacing.wait_after(verification.asked_sends()).unwrap_or_default();
        let (message, secret, trace) = self
            .issuer
            .next(verification, self.settings.resend_policy)
            .map_err(|closed| ResendError::Unavailable(closed.into()))?;
        let resend = Resend {
            id,
            sends,
            wait,
            message,
            trace: caller.trace.clone().unwrap_or(trace),
            secret,
            phone_limits: self.rules().limits.phone.clone(),
            extra: self.rules().counters(&verification.recipient(), caller),
            claim: caller.claim.clone(),
        };
        let storing = Storing::default();
        let permit = permit.stored_by(&storing);
        storing.begin();
        let answer = self.verifications.resend(resend).await;
        if !matches!(answer, Err(StoreError::Unavailable(_))) {
            storing.undo();
        }
        match answer? {
            Resent::Sent(verification) => {
                permit.sent(id);
                Ok(Some(*verification))
            }
            Resent::Limited(violations) => Err(ResendError::Limited(violations)),
            Resent::Changed => Ok(None),
        }
    }

    /// Issues one more message with the code that a verification has, if the guard does not block it.
    /// The guard does not count it: no caller asked for it, and a gateway that fails is not an attack.
    pub(super) fn issue_again(
        &self,
        verification: &Verification,
    ) -> Result<Option<(Message, TraceParent)>, VaultClosed> {
        let Ok(permit) = self.admit_resend(verification) else { return Ok(None) };
        drop(permit);
        self.issuer.again(verification)
    }

    /// Adds its events to a verification. If they cannot be read, returns the events that are
    /// certain: the message is stored, so this is no failure.
    pub(super) async fn with_events(&self, verification: Verification) -> History {
        match self.verifications.history(verification.id).await {
            Ok(Some(history)) => history,
            Ok(None) | Err(_) => begun(verification),
        }
    }
}

/// A verification with the events that its own row tells while it is pending.
pub(super) fn begun(verification: Verification) -> History {
    let mut events = vec![Event::new(EventKind::Created, verification.created_at)];
    if !verification.is_test() {
        events.push(Event::new(EventKind::Queued, verification.sent_at));
    }
    History { verification, events }
}

fn limited(policy: Policy, retry_after: Duration) -> ResendError {
    ResendError::Limited(vec![Violation { policy, retry_after }])
}

impl From<StoreError> for ResendError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Unavailable(_) => Self::Unavailable(error.into()),
        }
    }
}
