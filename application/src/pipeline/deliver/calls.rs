//! The calls of the gateways: what is sent, and what follows from the outcome.

use std::{sync::Arc, time::Duration};

use domain::{
    CannotOpen, CarriedCode, GatewayName, Measure, Message, Opened, PhoneNumber, VerificationId,
};
use rand_core::Rng;
use tokio::{
    task,
    time::{Instant, timeout},
};

use super::{DeliverMessages, backoff::backoff, lanes::QueuedMessage};
use crate::{
    OpenSpan, TraceParent,
    pipeline::routing::{Ask, FollowUp, Permit},
    ports::{
        Accepted, AwaitedReceipt, Call, CallOutcome, DeliveryLedger, OutcomeClass, SendError, Sms,
        SmsGateway, Verdict,
    },
};

/// The message of a call in progress.
#[derive(Debug)]
pub(super) struct Called<G> {
    message: QueuedMessage,
    attempt: u32,
    permit: Permit<G>,
    span: Option<OpenSpan>,
}

/// The end of a task that makes a call.
#[derive(Debug)]
pub(super) enum Made {
    /// With the time that the gateway took, unless its adapter panicked.
    Called(Result<Accepted, SendError>, Option<Duration>),
    /// The gateway was not called.
    NotCalled(SendError),
}

/// A call whose outcome the ledger does not have yet.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) phone: PhoneNumber,
    pub(super) outcome: CallOutcome,
    /// The span of the call, if there is one.
    pub(super) trace: Option<TraceParent>,
    /// The message, if another gateway can take it as soon as the outcome is recorded.
    pub(super) goes_on: Option<QueuedMessage>,
}

impl<L: DeliveryLedger, G: SmsGateway, R: Rng + Send + 'static> DeliverMessages<L, G, R> {
    pub(super) fn call(
        &mut self,
        call: Call,
        permit: Permit<G>,
        message: QueuedMessage,
        granted: Instant,
    ) {
        self.delivered.calls += 1;
        self.load.begin(permit.name());
        let end_by = granted + permit.call_limit();
        // A call that begins in time may end after the code has expired. Its outcome counts.
        let begin_by = end_by.min(granted + call.good_for);
        let span = self.settings.traced.call(
            message.trace.as_ref(),
            message.message.id,
            permit.name(),
            call.attempt,
        );
        let mut sms = self.sms(call, &permit, &message);
        if let (Ok(sms), Some(span)) = (&mut sms, &span) {
            sms.trace = Some(span.context().clone());
        }
        let gateway = Arc::clone(permit.gateway());
        let handle = self.calls.spawn(async move {
            let sms = match sms {
                Ok(sms) => sms,
                Err(error) => return Made::NotCalled(error),
            };
            // A process that was paused for this long after `start` must not call: another consumer
            // may have treated the call as interrupted, or the code may have expired.
            let now = Instant::now();
            if now >= begin_by {
                let detail = "not called: too late".to_owned();
                return Made::NotCalled(SendError::Unavailable { detail, retry_after: None });
            }
            let result = timeout(end_by - now, gateway.send(&sms))
                .await
                .unwrap_or_else(|_| Err(SendError::Ambiguous("no outcome in time".to_owned())));
            let result = result.map(|accepted| Accepted {
                reference: accepted.reference.filter(|it| !repeats(it, sms.code.as_str())),
                ..accepted
            });
            Made::Called(result, Some(now.elapsed()))
        });
        let called = Called { message, attempt: call.attempt, permit, span };
        self.called.insert(handle.id(), called);
    }

    fn sms(
        &self,
        call: Call,
        permit: &Permit<G>,
        message: &QueuedMessage,
    ) -> Result<Sms, SendError> {
        let QueuedMessage { message, trace, .. } = message.clone();
        let callback = self.settings.receipt_urls.of_message(permit.name(), message.id);
        let Opened { code, template, .. } = self.open(&message)?;
        let text = self.settings.templates.render(template.as_ref(), &code);
        Ok(Sms {
            message,
            code,
            text,
            expires_at: call.expires_at,
            good_for: call.good_for,
            trace,
            sender: permit.sender().cloned(),
            params: Arc::clone(permit.params()),
            callback,
        })
    }

    /// Returns the number of SMS that the text takes. A message that cannot be opened is not sent.
    pub(super) fn segments(&self, message: &Message) -> usize {
        self.open(message).map_or(1, |Opened { code, template, .. }| {
            Measure::of(&self.settings.templates.render(template.as_ref(), &code)).segments
        })
    }

    fn open(&self, message: &Message) -> Result<Opened, SendError> {
        let sealed = match &message.code {
            CarriedCode::Clear { code, template } => {
                let (code, template) = (code.clone(), template.clone());
                return Ok(Opened { phone: message.phone.clone(), code, template });
            }
            CarriedCode::Sealed(sealed) => sealed,
        };
        let keys = self.settings.vault.keys().ok_or_else(|| SendError::Unavailable {
            detail: "not called: the keys are not loaded yet".to_owned(),
            retry_after: None,
        })?;
        let opened = match &keys.payload {
            Some(keys) => keys.open(message.id, sealed),
            None => Err(CannotOpen::UnknownKey),
        };
        opened
            .and_then(
                |it| if it.phone == message.phone { Ok(it) } else { Err(CannotOpen::Damaged) },
            )
            .map_err(|error| match error {
                // Another consumer may have the key, or this one after its next start.
                CannotOpen::UnknownKey => SendError::Unavailable {
                    detail: format!("not called: {error}"),
                    retry_after: None,
                },
                CannotOpen::Damaged => SendError::Rejected(error.to_string()),
            })
    }

    pub(super) fn end_call(&mut self, call: Result<(task::Id, Made), task::JoinError>) {
        let (task, made) = match call {
            Ok(ended) => ended,
            Err(error) => {
                let panicked = SendError::Ambiguous("the gateway adapter panicked".to_owned());
                (error.id(), Made::Called(Err(panicked), None))
            }
        };
        let Called { mut message, attempt, permit, span } =
            self.called.remove(&task).expect("every call is recorded when it is spawned");
        let gateway = permit.name().clone();
        self.load.end(&gateway);
        let (id, phone) = (message.message.id, message.message.phone.clone());
        let class = made.class();
        let detail = made.error().map_or("", SendError::detail).to_owned();
        if let Some(error) = made.error() {
            tracing::warn!(message.id = %id, attempt, %gateway, %error, "message not accepted by the gateway");
        }
        let trace = span.as_ref().map(|it| it.context().clone());
        if let Some(span) = span {
            end_span(span, &made);
        }
        self.delivered.outcomes.push((gateway.clone(), class));
        if let Made::Called(_, Some(took)) = made {
            self.delivered.durations.push((gateway.clone(), took, trace.clone()));
        }
        // As the ledger will have it.
        (message.interrupted, message.past.attempts) = (false, attempt);
        message.past.tried.push(gateway.clone());
        match class {
            OutcomeClass::Ambiguous => message.past.may_have(gateway),
            OutcomeClass::Unroutable => message.past.unroutable.push(gateway),
            _ => {}
        }
        let verdict = self.judge(made, permit, &message);
        let goes_on = verdict == Verdict::Retry { after: Duration::ZERO };
        let goes_on = goes_on.then_some(message);
        let outcome = CallOutcome { id, attempt, class, verdict, detail };
        self.ended.push(Ended { phone, outcome, trace, goes_on });
    }

    /// Decides what follows from a call. The past of `message` includes it.
    fn judge(&mut self, made: Made, permit: Permit<G>, message: &QueuedMessage) -> Verdict {
        let attempt = message.past.attempts;
        let result = match made {
            Made::Called(result, _) => result,
            Made::NotCalled(SendError::Rejected(_)) => return Verdict::Failed,
            // Another gateway would not be called either.
            Made::NotCalled(_) => return self.later(None, attempt),
        };
        let gateway = permit.name().clone();
        permit.record(&result);
        let error = match result {
            Ok(Accepted { reference, receipts_by_reference }) => {
                self.budgets.earn(&gateway);
                let awaited = self.awaited_receipt(message, &gateway);
                return Verdict::Sent { reference, receipts_by_reference, awaited };
            }
            Err(error) => error,
        };
        let past = &message.past;
        let elsewhere = past.ambiguous.iter().any(|name| *name != gateway);
        let refused = if elsewhere { Verdict::Unknown } else { Verdict::Failed };
        let ask = self.ask(message);
        match (error, self.router.follow_up(&ask, &gateway)) {
            // Of an unroutable message: no other gateway is left that may deliver to the number.
            (SendError::Rejected(_), _)
            | (SendError::Unroutable(_), FollowUp::Later { alone: true }) => refused,
            (_, FollowUp::Unknown) => Verdict::Unknown,
            (_, FollowUp::AtOnce) => Verdict::Retry { after: Duration::ZERO },
            (
                SendError::Throttled { retry_after, .. }
                | SendError::Unavailable { retry_after, .. },
                FollowUp::Later { alone: true },
            ) => self.later(retry_after, attempt),
            (_, FollowUp::Later { .. }) => self.later(None, attempt),
        }
    }

    /// Returns the receipt without which the code is sent again. Only a code of this service can be made
    /// again.
    fn awaited_receipt(
        &self,
        message: &QueuedMessage,
        gateway: &GatewayName,
    ) -> Option<AwaitedReceipt> {
        VerificationId::number_of(message.message.id)?;
        self.router.awaited_receipt(&self.ask(message), gateway)
    }

    fn ask<'a>(&'a self, QueuedMessage { message, past, .. }: &'a QueuedMessage) -> Ask<'a> {
        Ask { id: message.id, phone: &message.phone, past, load: &self.load }
    }

    /// A retry after the time that the gateway asked for, or after the back-off.
    fn later(&mut self, asked: Option<Duration>, attempt: u32) -> Verdict {
        // A gateway that asks for no wait asked for none the last time either.
        let asked = asked.filter(|wait| !wait.is_zero());
        // A retry at once would go on to another gateway.
        let backoff = || backoff(attempt, &mut self.rng).max(Duration::from_millis(1));
        Verdict::Retry { after: asked.unwrap_or_else(backoff) }
    }
}

impl Made {
    fn error(&self) -> Option<&SendError> {
        match self {
            Self::Called(result, _) => result.as_ref().err(),
            Self::NotCalled(error) => Some(error),
        }
    }

    fn class(&self) -> OutcomeClass {
        self.error().map_or(OutcomeClass::Accepted, SendError::class)
    }
}

/// Ends the span of a call. The text of an error is left out, because a gateway may have written it.
fn end_span(mut span: OpenSpan, made: &Made) {
    let Made::Called(_, took) = made else { return span.discard() };
    let outcome = made.class().as_str();
    span.set("messager.outcome", outcome);
    if made.error().is_some() {
        span.fail(outcome);
    }
    if let Some(took) = took {
        span.took(*took);
    }
}

/// Whether a reference, which is stored, repeats the code or the text with it.
///
/// The digits of a code alone say nothing: an id of 18 digits contains a given code of four in one
/// case of 700, and receipts would then not find the message. An id has visible ASCII characters
/// only, and the code is not a number of its own in it. A text has spaces or letters beyond ASCII.
fn repeats(reference: &str, code: &str) -> bool {
    let looks_like_an_id = reference.bytes().all(|byte| byte.is_ascii_graphic());
    if looks_like_an_id {
        reference.split(|char: char| !char.is_ascii_digit()).any(|number| number == code)
    } else {
        reference.contains(code)
    }
}
