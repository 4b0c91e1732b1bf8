use std::{sync::Arc, time::Duration};

use autometrics::autometrics;
use domain::{Code, CodeLength, Metadata, Number, NumberRefused, Origin, Recipient, TemplateKey};
use rand_core::CryptoRng;

use super::{Caller, CodeSender, IssueRequest, Refusal, ResendError, sender::begun};
use crate::{
    BoxError,
    ports::{AnswerClaim, Enqueued, History, Outbox, StoreError, Verifications, Violation},
};

/// Starts a verification, or resends the code of the one that is pending for the phone.
#[derive(Debug)]
pub struct StartVerification<O, V, R> {
    outbox: O,
    sender: Arc<CodeSender<V, R>>,
}

/// A request to start a verification.
#[derive(Debug, Clone)]
pub struct StartRequest {
    pub number: Number,
    pub ttl: Duration,
    pub code_length: CodeLength,
    /// `None` stands for the default template.
    pub template: Option<TemplateKey>,
    pub metadata: Option<Metadata>,
    pub caller: Caller,
    /// The fixed code, if the number is a test number. Nothing is sent to test numbers.
    pub test_code: Option<Code>,
}

/// The reason why a verification was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The limits that are reached: at least one.
    #[error("a limit is reached")]
    Limited(Vec<Violation>),
    /// The rules for numbers refuse this number.
    #[error(transparent)]
    Refused(NumberRefused),
    /// Every gateway that can take the message has used its daily budget up.
    #[error("the daily budget is used up")]
    BudgetExhausted,
    /// The guard blocked the message.
    #[error("refused")]
    Blocked,
    #[error("too much work is waiting to be stored")]
    Full,
    /// The verification may have been stored.
    #[error("the verification was not stored")]
    Unavailable(#[source] BoxError),
}

impl<O: Outbox, V: Verifications, R: CryptoRng + Send + 'static> StartVerification<O, V, R> {
    pub fn new(outbox: O, sender: Arc<CodeSender<V, R>>) -> Self {
        Self { outbox, sender }
    }

    /// Starts a verification. Once this returns `Ok`, its message will be sent.
    ///
    /// If a verification is pending for the phone, this resends its code and ignores the other fields
    /// of the request.
    ///
    /// This happens once for each claim. A caller that takes the claim over gets the verification in
    /// its present state.
    #[autometrics(struct_name = "StartVerification")]
    pub async fn execute(&self, request: StartRequest) -> Result<History, StartError> {
        let sender = &self.sender;
        if let Some(history) = sender.find_done(&request.caller).await? {
            return Ok(history);
        }
        if let Some(code) = &request.test_code {
            return self.start_test(&request, code).await;
        }
        let to = Recipient::Number(request.number.clone());
        for _ in 0..2 {
            let permit = sender.admit(&to)?;
            let send = sender.issue(self.issue_request(&request)).map_err(unavailable)?;
            let permit = permit.stored_by(&send.storing);
            let unaccepted = send.clone();
            let pending = match self.outbox.enqueue(send).await? {
                Enqueued::Accepted { at } => {
                    let verification = unaccepted.accepted(at);
                    permit.sent(verification.id);
                    return Ok(begun(verification));
                }
                Enqueued::Limited(violations) => return Err(StartError::Limited(violations)),
                Enqueued::Pending(pending) => *pending,
            };
            if request.caller.claim.as_ref().is_some_and(|claim| claim.begins() == pending.id) {
                // An earlier holder of the claim has begun it just now.
                return Ok(sender.with_events(pending).await);
            }
            let sent = match sender.check_resend(&pending) {
                Ok(()) => sender.resend(&pending, permit, &request.caller).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(Some(verification)) => return Ok(sender.with_events(verification).await),
                // The verification has ended or another message was sent since it was read. Try again.
                Ok(None)
                | Err(ResendError::Gone(_) | ResendError::AlreadyApproved | ResendError::Unknown) =>
                    {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StartError::Unavailable("the verification changed during each attempt".into()))
    }

    /// Starts a verification of a test number. It has no limits, and each start is a new verification.
    async fn start_test(&self, request: &StartRequest, code: &Code) -> Result<History, StartError> {
        let test =
            self.sender.issue_test(self.issue_request(request), code).map_err(unavailable)?;
        Ok(begun(self.sender.start_test(test).await?))
    }

    fn issue_request(&self, request: &StartRequest) -> IssueRequest {
        let rules = self.sender.rules();
        let request = request.clone();
        let Number { phone, region, .. } = request.number.clone();
        IssueRequest {
            id: request.caller.claim.as_ref().map(AnswerClaim::begins),
            origin: Origin::V1,
            phone_limits: rules.limits.phone.clone(),
            apart: rules.phones_apart(),
            extra: rules.counters(&Recipient::Number(request.number), &request.caller),
            phone,
            written: None,
            region,
            ttl: request.ttl,
            code_length: request.code_length,
            template: request.template,
            metadata: request.metadata,
            api_key: request.caller.api_key,
            trace: request.caller.trace,
        }
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Unavailable(_) => unavailable(error),
        }
    }
}

impl From<Refusal> for StartError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Number(rule) => Self::Refused(rule),
            Refusal::Budget => Self::BudgetExhausted,
            Refusal::Guard => Self::Blocked,
        }
    }
}

impl From<ResendError> for StartError {
    fn from(error: ResendError) -> Self {
        match error {
            ResendError::Limited(violations) => Self::Limited(violations),
            ResendError::BudgetExhausted => Self::BudgetExhausted,
            ResendError::Blocked => Self::Blocked,
            ResendError::Full => Self::Full,
            ResendError::Unavailable(cause) => Self::Unavailable(cause),
            ended
            @ (ResendError::Unknown | ResendError::AlreadyApproved | ResendError::Gone(_)) => {
                Self::Unavailable(ended.into())
            }
        }
    }
}

fn unavailable(cause: impl Into<BoxError>) -> StartError {
    StartError::Unavailable(cause.into())
}

#[cfg(test)]
mod tests;
