//! The calls of the gateway: what is sent, and what follows from the outcome.

use std::sync::Arc;

use domain::{CannotOpen, CarriedCode, Message, MessageId, Opened, PhoneNumber};
use rand_core::Rng;
use tokio::{
    task,
    time::{Instant, timeout},
};

use super::{DeliverMessages, backoff::backoff};
use crate::{
    TraceParent,
    ports::{
        Accepted, Call, CallOutcome, DeliveryLedger, OutcomeClass, SendError, Sms, SmsGateway,
        Verdict,
    },
};

/// The message of a call in progress.
#[derive(Debug)]
pub(super) struct Called {
    id: MessageId,
    phone: PhoneNumber,
    attempt: u32,
}

impl<L: DeliveryLedger, G: SmsGateway, R: Rng + Send + 'static> DeliverMessages<L, G, R> {
    pub(super) fn call(
        &mut self,
        call: Call,
        message: Message,
        trace: Option<TraceParent>,
        granted: Instant,
    ) {
        self.delivered.calls += 1;
        let end_by = granted + self.settings.call_limit;
        // A call that begins in time may end after the code has expired. Its outcome counts.
        let begin_by = end_by.min(granted + call.good_for);
        let called = Called { id: message.id, phone: message.phone.clone(), attempt: call.attempt };
        let sms = self.sms(call, message, trace);
        let gateway = Arc::clone(&self.gateway);
        let handle = self.calls.spawn(async move {
            let sms = sms?;
            // A process that was paused for this long after `start` must not call: another consumer
            // may have treated the call as interrupted, or the code may have expired.
            let now = Instant::now();
            if now >= begin_by {
                return Err(SendError::Unavailable {
                    detail: "not called: too late".to_owned(),
                    retry_after: None,
                });
            }
            let accepted = timeout(end_by - now, gateway.send(&sms))
                .await
                .unwrap_or_else(|_| Err(SendError::Ambiguous("no outcome in time".to_owned())))?;
            // The reference is stored, and a gateway might repeat the text with the code.
            let reference = accepted.reference.filter(|it| !it.contains(sms.code.as_str()));
            Ok(Accepted { reference, ..accepted })
        });
        self.called.insert(handle.id(), called);
    }

    fn sms(
        &self,
        call: Call,
        message: Message,
        trace: Option<TraceParent>,
    ) -> Result<Sms, SendError> {
        let Opened { code, template, .. } = self.open(&message)?;
        let text = self.settings.templates.render(template.as_ref(), &code);
        Ok(Sms {
            message,
            code,
            text,
            expires_at: call.expires_at,
            good_for: call.good_for,
            trace,
            sender: None,
            params: Arc::default(),
            callback: None,
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
                CannotOpen::Damaged => SendError::Misconfigured(error.to_string()),
            })
    }

    pub(super) fn end_call(
        &mut self,
        call: Result<(task::Id, Result<Accepted, SendError>), task::JoinError>,
    ) {
        let (task, result) = match call {
            Ok(ended) => ended,
            Err(error) => {
                (error.id(), Err(SendError::Ambiguous("the gateway adapter panicked".to_owned())))
            }
        };
        let Called { id, phone, attempt } =
            self.called.remove(&task).expect("every call is recorded when it is spawned");
        let (class, detail) = match &result {
            Ok(_) => {
                self.budget.earn();
                (OutcomeClass::Accepted, String::new())
            }
            Err(error) => {
                tracing::warn!(message.id = %id, attempt, %error, "message not accepted by the gateway");
                (error.class(), error.detail().to_owned())
            }
        };
        self.delivered.outcomes.push(class);
        let verdict = self.judge(result, attempt);
        self.ended.push((phone, CallOutcome { id, attempt, class, verdict, detail }));
    }

    fn judge(&mut self, result: Result<Accepted, SendError>, attempt: u32) -> Verdict {
        match result {
            Ok(Accepted { reference, receipts_by_reference }) => {
                Verdict::Sent { reference, receipts_by_reference }
            }
            Err(
                SendError::Rejected(_) | SendError::Unroutable(_) | SendError::Misconfigured(_),
            ) => Verdict::Failed,
            Err(
                SendError::Throttled { retry_after, .. }
                | SendError::Unavailable { retry_after, .. },
            ) => Verdict::Retry {
                // A gateway that asks for no wait asked for none the last time either.
                after: retry_after
                    .filter(|wait| !wait.is_zero())
                    .unwrap_or_else(|| backoff(attempt, &mut self.rng)),
            },
            Err(SendError::Ambiguous(_)) if self.gateway.deduplicates() => {
                Verdict::Retry { after: backoff(attempt, &mut self.rng) }
            }
            Err(SendError::Ambiguous(_)) => Verdict::Unknown,
        }
    }
}
