//! Judges a run by its history and by the tables at its end.
//!
//! A request or a call without an answer is neither a success nor a failure: the service or the
//! gateway may have carried it out or not.

mod evidence;
mod failover;

use std::collections::{BTreeMap, HashMap, HashSet};

pub use self::failover::Failover;
use self::{
    evidence::Evidence,
    failover::{TO_FIRST, TO_SECOND},
};
use super::{
    history::{Call, History, Incident, SLOW},
    invariants::{Invariant, Judgement, UnknownOutcome, Violation},
};
use crate::kit::{
    clock::Moment,
    phones::{is_refused, masked},
    recorder::{AfterAmbiguous, Answer, GatewayKind, Reply},
    tables::{Entry, Ledger},
};

/// Judges the run so far, while nothing is in flight. `call_limit` is how many milliseconds the
/// service waits for the gateway.
pub fn check(history: &History, ledger: &Ledger, call_limit: Moment) -> Judgement {
    let mut checker = Checker::new(history, ledger, call_limit);
    checker.answers();
    checker.ends();
    checker.states();
    checker.payments();
    checker.failovers();
    checker.phantoms();
    checker.illegal_writes();
    checker.order();
    checker.unknowns();
    checker.crashes();
    checker.judgement
}

/// Judges the copies in the topic of messages that met no fault. `copies` has the number of copies
/// of each message.
pub fn check_repeats(
    history: &History,
    ledger: &Ledger,
    copies: &BTreeMap<String, u32>,
) -> Option<Violation> {
    let mut undisturbed = 0;
    let mut repeats = 0;
    for entry in &ledger.entries {
        let ended_at = entry.ended_at.unwrap_or(Moment::MAX);
        if history.incidents_near(entry.accepted_at, ended_at).next().is_none() {
            undisturbed += 1;
            repeats += copies.get(&entry.id).map_or(0, |copies| copies.saturating_sub(1));
        }
    }
    // On a busy machine leases run out, too.
    let allowed = 20 + undisturbed / 10;
    (repeats > allowed).then(|| Violation {
        invariant: Invariant::Repeats,
        subject: "topic".to_owned(),
        detail: format!("{repeats} copies of {undisturbed} messages that met no fault"),
    })
}

struct Checker<'a> {
    history: &'a History,
    ledger: &'a Ledger,
    call_limit: Moment,
    calls: HashMap<&'a str, Vec<&'a Call>>,
    entries: HashMap<&'a str, &'a Entry>,
    judgement: Judgement,
}

/// The requests for one phone, and the messages that came of them.
#[derive(Debug, Default)]
struct Account<'a> {
    requests: usize,
    accepted: usize,
    /// In the ledger.
    recorded: usize,
    ended: usize,
    ids: HashSet<&'a str>,
}

impl<'a> Checker<'a> {
    fn new(history: &'a History, ledger: &'a Ledger, call_limit: Moment) -> Self {
        Self {
            history,
            ledger,
            call_limit,
            calls: history.calls_by_id(),
            entries: ledger.entries.iter().map(|entry| (&*entry.id, entry)).collect(),
            judgement: Judgement::default(),
        }
    }

    fn accounts(&self) -> BTreeMap<&'a str, Account<'a>> {
        let mut accounts: BTreeMap<&str, Account<'_>> = BTreeMap::new();
        for request in &self.history.requests {
            let account = accounts.entry(&request.phone).or_default();
            account.requests += 1;
            account.accepted += usize::from(request.reply == Reply::Accepted);
        }
        for entry in &self.ledger.entries {
            let account = accounts.entry(&entry.phone).or_default();
            account.recorded += 1;
            account.ended += usize::from(entry.has_ended());
            account.ids.insert(&entry.id);
        }
        for call in &self.history.calls {
            accounts.entry(&call.phone).or_default().ids.insert(&call.id);
        }
        accounts
    }

    fn answers(&mut self) {
        for request in &self.history.requests {
            let complaint = match request.reply {
                Reply::Illegal => request.detail.clone().unwrap_or_default(),
                // Allowed only if a fault hit its connection, or the process behind it.
                Reply::Silent
                    if self
                        .incidents(request.asked_at, request.ended_at, Incident::hits_api)
                        .next()
                        .is_none() =>
                {
                    "no answer, though no fault hit the API".to_owned()
                }
                _ => continue,
            };
            let detail =
                self.evidence(&complaint).incidents(request.asked_at, request.ended_at).text();
            self.report(Invariant::Answer, masked(&request.phone), detail);
        }
    }

    /// Every 200 led to a message that ended, and each message has one entry.
    fn ends(&mut self) {
        for (phone, account) in self.accounts() {
            if account.ended < account.accepted {
                let complaint = format!(
                    "{} accepted, {} in the ledger, {} ended",
                    account.accepted, account.recorded, account.ended
                );
                let detail = self.evidence(&complaint).phone(phone, self.ledger).text();
                self.report(Invariant::Lost, masked(phone), detail);
            }
            if account.ids.len() > account.requests {
                let complaint =
                    format!("{} requests, {} messages", account.requests, account.ids.len());
                let detail = self.evidence(&complaint).phone(phone, self.ledger).text();
                self.report(Invariant::Phantom, masked(phone), detail);
            }
        }
        let mut seen = HashSet::new();
        for entry in &self.ledger.entries {
            if !seen.insert(&entry.id) {
                let detail = "it is in the ledger twice".to_owned();
                self.report(Invariant::Lost, entry.id.clone(), detail);
            }
        }
    }

    /// The states of the ledger are true.
    fn states(&mut self) {
        for entry in &self.ledger.entries {
            let calls = self.calls_of(&entry.id);
            let paid = calls.iter().any(|call| call.paid);
            let complaint = match &*entry.state {
                "sent" if !paid => "sent, but the gateway never took it",
                "sent" if is_refused(&entry.phone) => "sent to a number that is refused",
                "failed" if !is_refused(&entry.phone) => "failed, but the gateway never refused it",
                // No back-off and no `Retry-After` of the lab is that long.
                "expired" if entry.ended_at.is_some_and(|at| at + 60_000 < entry.expires_at) => {
                    "expired, but its code was good for another minute"
                }
                _ => continue,
            };
            let detail = self.evidence(complaint).entry(entry).text();
            self.report(Invariant::Lost, entry.id.clone(), detail);
        }
    }

    /// The gateway took no message twice, and was called again only for a cause.
    fn payments(&mut self) {
        let mut found = Vec::new();
        for (id, calls) in &self.calls {
            if let Some(complaint) = self.payment(calls) {
                found.push((*id, complaint));
                continue;
            }
            for pair in calls.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                let accepted =
                    first.whole && matches!(first.answer, Answer::Accept | Answer::BadBody);
                let cause =
                    self.incidents(first.began_at, second.began_at, Incident::hits_consumers);
                if accepted && cause.count() == 0 {
                    found.push((*id, "called again after it was accepted".to_owned()));
                    break;
                }
            }
        }
        found.sort_unstable();
        for (id, complaint) in found {
            let detail = self.evidence(&complaint).calls(id).text();
            self.report(Invariant::Doubled, id.to_owned(), detail);
        }
    }

    /// Says what is wrong if a gateway took a message twice, or a second gateway took it without an
    /// ambiguous outcome of the first.
    fn payment(&self, calls: &[&Call]) -> Option<String> {
        let mut first: Option<&Call> = None;
        let mut gateways = HashSet::new();
        for call in calls.iter().filter(|call| call.paid) {
            if !gateways.insert(call.gateway) {
                return Some(format!("gateway {} took it again", call.gateway));
            }
            let Some(first) = first.replace(call) else { continue };
            let round = self.history.round_at(first.began_at);
            if round.is_none_or(|round| round.ambiguous == AfterAmbiguous::Same) {
                return Some("two gateways took it, with ambiguous = \"same\"".to_owned());
            }
            let end = first.ended_at.unwrap_or(call.began_at);
            let disturbed = self.incidents(first.began_at, end, Incident::hits_consumers).next();
            if !self.is_ambiguous(first) && disturbed.is_none() {
                return Some("two gateways took it, though the first call was clear".to_owned());
            }
        }
        None
    }

    /// During each fault of the first gateway, messages took the second one. After it, the first one
    /// was used again.
    fn failovers(&mut self) {
        let history = self.history;
        for outage in history.outages() {
            let Some(end) = outage.to else { continue };
            let found = Failover::of(history, self.ledger, outage);
            let second = found.to_second.is_some_and(|took| took <= TO_SECOND);
            let first = found.to_first.is_some_and(|took| took <= TO_FIRST);
            if second && first {
                continue;
            }
            let complaint = found.to_string();
            let detail = self.evidence(&complaint).incidents(outage.from, end).text();
            self.report(Invariant::Failover, outage.kind.clone(), detail);
        }
    }

    fn phantoms(&mut self) {
        let asked: HashSet<&str> =
            self.history.requests.iter().map(|request| &*request.phone).collect();
        for call in &self.history.calls {
            let complaint = if !asked.contains(&*call.phone) {
                "a call for a phone that no client asked for"
            } else if call.id.is_empty() || call.id.contains('/') {
                "a call whose idempotency key is not the message's id"
            } else if self
                .calls_of(&call.id)
                .iter()
                .any(|other| (&other.code, &other.phone) != (&call.code, &call.phone))
            {
                "calls with one id and different contents"
            } else if !self.entries.contains_key(&*call.id) {
                "a call for a message that is not in the ledger"
            } else {
                continue;
            };
            let subject = call.id.clone();
            let detail = self.evidence(complaint).calls(&call.id).text();
            self.report(Invariant::Phantom, subject, detail);
        }
    }

    /// The triggers recorded no illegal write.
    fn illegal_writes(&mut self) {
        for write in &self.ledger.illegal_writes {
            let invariant = match &*write.kind {
                "offset" => Invariant::Offset,
                _ => Invariant::Epoch,
            };
            // A topic that was wiped begins at 0 again.
            let wiped = |incident: &&Incident| {
                incident.kind == "topic-wipe" && incident.overlaps(write.at - 1_000, write.at)
            };
            if invariant == Invariant::Offset && self.history.incidents.iter().any(|it| wiped(&it))
            {
                continue;
            }
            let detail = self.evidence(&write.detail).incidents(write.at, write.at).text();
            self.report(invariant, write.subject.clone(), detail);
        }
    }

    /// The gateway took the messages to one phone in their order, if each was asked for after the
    /// one before had been accepted.
    fn order(&mut self) {
        let mut entries: HashMap<&str, Vec<&Entry>> = HashMap::new();
        for entry in &self.ledger.entries {
            entries.entry(&entry.phone).or_default().push(entry);
        }
        for phone in &self.history.sequences {
            let Some(entries) = entries.get_mut(&**phone) else { continue };
            entries.sort_unstable_by_key(|entry| entry.accepted_at);
            let taken: Vec<(&Entry, Moment)> = entries
                .iter()
                // An unknown outcome may come from a call that was delayed for long.
                .filter(|entry| entry.state == "sent")
                .filter_map(|entry| {
                    let first = self.calls_of(&entry.id).iter().find(|call| call.paid)?.began_at;
                    Some((*entry, first))
                })
                .collect();
            for pair in taken.windows(2) {
                let [(earlier, earlier_taken), (later, later_taken)] = pair else { continue };
                // A message in another partition, or one that is published again, may come later.
                let reordered =
                    self.incidents(earlier.accepted_at, *earlier_taken, Incident::reorders).next();
                if earlier_taken > later_taken
                    && earlier.accepted_at < later.accepted_at
                    && reordered.is_none()
                {
                    let complaint =
                        format!("taken {} ms after the next one", earlier_taken - later_taken);
                    let detail = self.evidence(&complaint).entry(earlier).entry(later).text();
                    self.report(Invariant::Order, earlier.id.clone(), detail);
                }
            }
        }
    }

    fn unknowns(&mut self) {
        for entry in self.ledger.entries.iter().filter(|entry| entry.state == "unknown") {
            let (from, to) = (
                entry.called_at.unwrap_or(entry.accepted_at),
                entry.ended_at.unwrap_or(Moment::MAX),
            );
            let ambiguous = self
                .calls_of(&entry.id)
                .iter()
                .find(|call| self.is_ambiguous(call))
                .map(|call| format!("call answered {}", call.answer));
            let disturbed = || {
                self.incidents(from, to, Incident::hits_consumers)
                    .next()
                    .map(|incident| format!("{} of {}", incident.kind, incident.target))
            };
            let plain = self.history.round_at(from).is_some_and(|it| it.kind == GatewayKind::Plain);
            let possible = plain || self.may_be_unknown(&entry.id, from);
            if let Some(cause) = ambiguous.or_else(disturbed).filter(|_| possible) {
                self.judgement.unknowns.push(UnknownOutcome { id: entry.id.clone(), cause });
                continue;
            }
            let complaint = if possible {
                "unknown, though every call of it was clear"
            } else {
                "unknown, though the gateway would have recognised it"
            };
            let detail = self.evidence(complaint).entry(entry).text();
            self.report(Invariant::Unknown, entry.id.clone(), detail);
        }
    }

    /// Whether one gateway refused the message while another may have it.
    fn may_be_unknown(&self, id: &str, at: Moment) -> bool {
        let next = self.history.round_at(at).is_some_and(|it| it.ambiguous == AfterAmbiguous::Next);
        next && self.calls_of(id).iter().any(|call| call.answer == Answer::Refuse)
    }

    fn crashes(&mut self) {
        for (process, at) in &self.history.crashes {
            let detail = self.evidence("it ended by itself").incidents(*at, *at).text();
            self.report(Invariant::Crash, process.clone(), detail);
        }
    }

    /// Whether the caller could not know the outcome.
    fn is_ambiguous(&self, call: &Call) -> bool {
        let late = call.ended_at.is_none_or(|end| end - call.began_at + 200 > self.call_limit);
        !call.whole || late || matches!(call.answer, Answer::Error | Answer::Noise | Answer::Drip)
    }

    fn calls_of(&self, id: &str) -> &[&'a Call] {
        self.calls.get(id).map_or(&[], Vec::as_slice)
    }

    fn incidents(
        &self,
        from: Moment,
        to: Moment,
        of_interest: impl Fn(&Incident) -> bool,
    ) -> impl Iterator<Item = &'a Incident> {
        self.history.incidents_near(from, to).filter(move |incident| of_interest(incident))
    }

    fn evidence(&self, complaint: &str) -> Evidence<'_> {
        Evidence::new(complaint, self.history, &self.calls)
    }

    fn report(&mut self, invariant: Invariant, subject: String, detail: String) {
        self.judgement.violations.push(Violation { invariant, subject, detail });
    }
}

impl Incident {
    /// Whether it can keep an answer from a client.
    fn hits_api(&self) -> bool {
        self.kind.ends_with("-api") || self.hits_embedded() || self.kind == SLOW
    }

    /// Whether it hits all parts of the embedded default.
    fn hits_embedded(&self) -> bool {
        self.kind.ends_with("-messager")
            || self.kind.starts_with("disk-")
            || self.kind.starts_with("file-")
    }

    /// Whether it can keep an answer from a consumer, or keep the consumer from recording it.
    fn hits_consumers(&self) -> bool {
        self.kind.ends_with("-consumer")
            || self.kind.starts_with("postgres-")
            || self.kind.contains("consumer-postgres")
            || self.kind.contains("consumer-gateway")
            || self.hits_embedded()
            || self.kind == SLOW
    }

    /// Whether it moves phones to other partitions, or loses published messages.
    fn reorders(&self) -> bool {
        matches!(&*self.kind, "partition-add" | "topic-wipe")
    }
}

#[cfg(test)]
mod tests;
