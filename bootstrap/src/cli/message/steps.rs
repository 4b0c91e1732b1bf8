//! The steps of a story, in the order of their times.

use std::time::SystemTime;

use adapters_persistence::{EndedCall, LedgerEntry, MessageStory, Story, WaitingMessage};
use application::ports::Verification;
use domain::{MessageId, PhoneNumber, VerificationId, VerificationStatus};
use serde_json::{Value, json};

use super::super::{rfc3339, table::text};

/// Something that happened, or that is going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// `None` if it is going on.
    pub(super) at: Option<SystemTime>,
    /// The number of the message within its verification, or its id if it belongs to none. `None` of
    /// the verification itself.
    pub(super) message: Option<String>,
    pub(super) what: &'static str,
    pub(super) detail: String,
}

/// Returns the steps. What is going on comes last.
pub(super) fn steps(story: &Story) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(verification) = &story.verification {
        of_verification(verification, &mut steps);
    }
    for message in &story.messages {
        Messages { message, steps: &mut steps }.add();
    }
    for event in &story.events {
        let tries = match event.attempts {
            0 => String::new(),
            tries => format!(" after {}", times(tries, "post")),
        };
        let detail =
            format!("{} waits to be posted{tries}, due {}", event.kind, rfc3339(event.due_at));
        steps.push(Step { at: None, message: None, what: "event", detail });
    }
    steps.sort_by_key(|step| (step.at.is_none(), step.at));
    steps
}

/// Returns the phone of the messages.
pub(super) fn phone(story: &Story) -> Option<&PhoneNumber> {
    story.messages.iter().find_map(|message| {
        let waiting = message.waiting.as_ref().map(|it| &it.phone);
        waiting.or_else(|| message.entries.first().map(|it| &it.phone))
    })
}

fn of_verification(verification: &Verification, steps: &mut Vec<Step>) {
    let mut add = |at, step, detail: String| {
        steps.push(Step { at: Some(at), message: None, what: step, detail });
    };
    add(verification.created_at, "started", format!("through {}", door(verification)));
    if let Some(at) = verification.ended_at {
        let step = match verification.status {
            VerificationStatus::Pending => return,
            VerificationStatus::Approved => "approved",
            VerificationStatus::Expired => "expired",
            VerificationStatus::Canceled => "canceled",
        };
        let guesses = times(u64::from(verification.attempts), "guess");
        add(at, step, format!("after {guesses}"));
    }
}

fn door(verification: &Verification) -> &'static str {
    match verification.origin {
        domain::Origin::V1 => "/v1",
        domain::Origin::Api => "/api",
        domain::Origin::Test => "/v1, to a test number: nothing is sent",
    }
}

/// Collects the steps of a message.
struct Messages<'a> {
    message: &'a MessageStory,
    steps: &'a mut Vec<Step>,
}

impl Messages<'_> {
    fn add(&mut self) {
        let MessageStory { waiting, entries, extra, awaited, dead_letters, .. } = self.message;
        let accepted = waiting.as_ref().map(|it| it.accepted_at);
        let accepted = accepted.or_else(|| entries.iter().map(|it| it.accepted_at).min());
        if let Some(at) = accepted {
            let detail = extra.as_ref().map_or_else(String::new, |extra| {
                format!("sent again without {}: {}", extra.gateway, extra.reason)
            });
            self.at(at, "accepted", detail);
        }
        if let Some(waiting) = waiting {
            self.waiting(waiting);
        }
        for entry in entries {
            self.entry(entry);
        }
        if let Some(awaited) = awaited {
            let detail = format!("from {}, until {}", awaited.gateway, rfc3339(awaited.due_at));
            self.now("receipt awaited", detail);
        }
        if !dead_letters.is_empty() {
            let ids: Vec<String> = dead_letters.iter().map(i64::to_string).collect();
            let detail = format!("one of these may be this message: {}", ids.join(", "));
            self.now("dead letter", detail);
        }
    }

    fn waiting(&mut self, waiting: &WaitingMessage) {
        let until = rfc3339(waiting.expires_at);
        if waiting.is_published {
            self.now("in transit", format!("no consumer has it yet; expires {until}"));
        } else {
            self.now("waiting", format!("to be published; expires {until}"));
        }
    }

    fn entry(&mut self, entry: &LedgerEntry) {
        let LedgerEntry { group, topic, partition, .. } = entry;
        if let Some(at) = entry.admitted_at.filter(|_| !group.is_empty()) {
            let detail = format!("by group {group}, from {topic} partition {partition}");
            self.at(at, "taken over", detail);
        }
        for call in &entry.calls {
            self.call(call);
        }
        let gateway = entry.gateway.as_deref().unwrap_or("default");
        match (&*entry.state, entry.ended_at) {
            ("calling", _) => {
                let until = rfc3339(entry.due_at);
                let detail = format!("a call of {gateway} is in progress, until {until} at most");
                self.now("calling", detail);
            }
            ("pending", _) => {
                let next = format!("its next call is due {}", rfc3339(entry.due_at));
                self.now("pending", format!("{next}; expires {}", rfc3339(entry.expires_at)));
            }
            (state, Some(at)) => self.ended(entry, state, at),
            (_, None) => {}
        }
        let receipts = [("delivered", entry.delivered_at), ("undelivered", entry.undelivered_at)];
        for (step, at) in receipts {
            if let Some(at) = at {
                self.at(at, step, format!("says the receipt of {gateway}"));
            }
        }
    }

    fn call(&mut self, call: &EndedCall) {
        let EndedCall { gateway, outcome, detail, called_at, ended_at } = call;
        let lasted = called_at.zip(*ended_at).and_then(|(from, to)| to.duration_since(from).ok());
        let lasted = lasted.map_or_else(String::new, |it| format!(" after {} ms", it.as_millis()));
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        let detail = format!("{gateway}: {outcome}{lasted}{detail}");
        match called_at.or(*ended_at) {
            Some(at) => self.at(at, "called", detail),
            None => self.now("called", detail),
        }
    }

    fn ended(&mut self, entry: &LedgerEntry, state: &str, at: SystemTime) {
        let step = match state {
            "sent" => "sent",
            "failed" => "failed",
            "expired" => "expired",
            _ => "unknown",
        };
        let detail = match (step, &entry.reference) {
            ("sent", Some(reference)) => format!("the provider's id is {reference}"),
            ("expired", _) if entry.group.is_empty() => "before a consumer took it over".to_owned(),
            _ => entry.detail.clone().unwrap_or_default(),
        };
        self.at(at, step, detail);
    }

    fn at(&mut self, at: SystemTime, step: &'static str, detail: String) {
        let message = Some(number(self.message.id));
        self.steps.push(Step { at: Some(at), message, what: step, detail });
    }

    fn now(&mut self, step: &'static str, detail: String) {
        let message = Some(number(self.message.id));
        self.steps.push(Step { at: None, message, what: step, detail });
    }
}

fn number(id: MessageId) -> String {
    VerificationId::number_of(id).map_or_else(|| id.to_string(), |number| number.to_string())
}

fn times(count: u64, what: &str) -> String {
    match (count, what) {
        (1, _) => format!("1 {what}"),
        (_, "guess") => format!("{count} guesses"),
        _ => format!("{count} {what}s"),
    }
}

/// Returns what is known of a message, for programs.
pub(super) fn message_json(message: &MessageStory) -> Value {
    let at = |time: Option<SystemTime>| time.map_or(Value::Null, |time| text(rfc3339(time)));
    let call = |it: &EndedCall| {
        json!({
            "gateway": it.gateway, "outcome": it.outcome, "detail": it.detail,
            "called": at(it.called_at), "ended": at(it.ended_at),
        })
    };
    let entry = |it: &LedgerEntry| {
        json!({
            "group": it.group, "topic": it.topic, "partition": it.partition, "state": it.state,
            "gateway": it.gateway, "reference": it.reference, "detail": it.detail,
            "accepted": at(Some(it.accepted_at)), "taken_over": at(it.admitted_at),
            "expires": at(Some(it.expires_at)), "due": at(Some(it.due_at)),
            "ended": at(it.ended_at), "delivered": at(it.delivered_at),
            "undelivered": at(it.undelivered_at),
            "calls": it.calls.iter().map(call).collect::<Vec<_>>(),
        })
    };
    let waiting = message.waiting.as_ref().map(|it| {
        json!({
            "place": if it.is_published { "in transit" } else { "outbox" },
            "accepted": at(Some(it.accepted_at)), "expires": at(Some(it.expires_at)),
        })
    });
    json!({
        "id": message.id.to_string(),
        "number": VerificationId::number_of(message.id),
        "waiting": waiting,
        "entries": message.entries.iter().map(entry).collect::<Vec<_>>(),
        "extra": message.extra.as_ref().map(|it| {
            json!({ "gateway": it.gateway.as_str(), "reason": it.reason, "sent": at(Some(it.sent_at)) })
        }),
        "receipt_awaited": message.awaited.as_ref().map(|it| {
            json!({ "gateway": it.gateway.as_str(), "due": at(Some(it.due_at)) })
        }),
        "possible_dead_letters": message.dead_letters,
    })
}
