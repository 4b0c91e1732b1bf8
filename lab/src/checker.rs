//! Judges a run by its history and by what the tables say in the end.
//!
//! A request or a call without an answer is neither a success nor a failure: what it asked for may
//! have been done or not.

mod story;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use serde::Serialize;

use self::story::Story;
use crate::{
    clock::Moment,
    gateway::{Answer, Memory},
    history::{Call, History, Reply, SLOW, Trouble},
    ledger::{Entry, Ledger},
    phones::{is_refused, masked},
};

/// What must always hold; the name of each stands in reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Invariant {
    /// What was accepted ends, in one state, and truly.
    Lost,
    /// No message is taken by the gateway twice, nor called again without a cause.
    Doubled,
    /// Nothing is sent that nobody asked for.
    Phantom,
    /// No stored offset goes back.
    Offset,
    /// Nobody writes who lost the right to.
    Epoch,
    /// Messages to one phone keep their order.
    Order,
    /// After the faults, all that waits gets done.
    Stuck,
    /// Memory and connections are bounded.
    Memory,
    /// The topic holds few copies.
    Repeats,
    /// An outcome is unknown only after an ambiguous call.
    Unknown,
    /// The API answers as it says it does, in time.
    Answer,
    /// No number and no code is in a log.
    Log,
    /// No process ends unasked.
    Crash,
}

/// Something that must not be.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    pub invariant: Invariant,
    /// The message, the masked phone, the partition or the process.
    pub subject: String,
    /// What is wrong, and what there is to investigate it with.
    pub detail: String,
}

/// A message that ended as unknown, and why it may.
#[derive(Debug, Clone, Serialize)]
pub struct UnknownOutcome {
    pub id: String,
    pub cause: String,
}

/// What the checker found.
#[derive(Debug, Default)]
pub struct Judgement {
    pub violations: Vec<Violation>,
    pub unknowns: Vec<UnknownOutcome>,
}

impl Invariant {
    pub const ALL: [Self; 13] = [
        Self::Lost,
        Self::Doubled,
        Self::Phantom,
        Self::Offset,
        Self::Epoch,
        Self::Order,
        Self::Stuck,
        Self::Memory,
        Self::Repeats,
        Self::Unknown,
        Self::Answer,
        Self::Log,
        Self::Crash,
    ];

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|invariant| invariant.to_string() == name)
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Doubled => "doubled",
            Self::Phantom => "phantom",
            Self::Offset => "offset",
            Self::Epoch => "epoch",
            Self::Order => "order",
            Self::Stuck => "stuck",
            Self::Memory => "memory",
            Self::Repeats => "repeats",
            Self::Unknown => "unknown",
            Self::Answer => "answer",
            Self::Log => "log",
            Self::Crash => "crash",
        })
    }
}

/// Judges all that happened so far, at a time when nothing is under way. `call_limit` is how many
/// milliseconds the service waits for the gateway.
pub fn check(history: &History, ledger: &Ledger, call_limit: Moment) -> Judgement {
    let mut checker = Checker::new(history, ledger, call_limit);
    checker.answers();
    checker.ends();
    checker.states();
    checker.payments();
    checker.phantoms();
    checker.offences();
    checker.order();
    checker.unknowns();
    checker.crashes();
    checker.judgement
}

/// Copies in the topic of messages that no fault met on their way. `copies` says how often each
/// message stands there.
pub fn check_repeats(
    history: &History,
    ledger: &Ledger,
    copies: &BTreeMap<String, u32>,
) -> Option<Violation> {
    let mut undisturbed = 0;
    let mut repeats = 0;
    for entry in &ledger.entries {
        let ended_at = entry.ended_at.unwrap_or(Moment::MAX);
        if history.troubles_near(entry.accepted_at, ended_at).next().is_none() {
            undisturbed += 1;
            repeats += copies.get(&entry.id).map_or(0, |copies| copies.saturating_sub(1));
        }
    }
    // A machine with too much to do lets leases run out, too.
    let allowed = 20 + undisturbed / 10;
    (repeats > allowed).then(|| Violation {
        invariant: Invariant::Repeats,
        subject: "topic".to_owned(),
        detail: format!("{repeats} copies of {undisturbed} messages that no fault met"),
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

/// What was asked for one phone, and what came of it.
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
            let complaint = match &request.reply {
                Reply::Illegal(answer) => answer.clone(),
                // Its connection, or the process behind it, must have been held up.
                Reply::Silent
                    if self
                        .troubles(request.asked_at, request.ended_at, Trouble::hits_api)
                        .next()
                        .is_none() =>
                {
                    "no answer, and nothing kept the API from giving one".to_owned()
                }
                _ => continue,
            };
            let detail = self.story(&complaint).troubles(request.asked_at, request.ended_at).told();
            self.report(Invariant::Answer, masked(&request.phone), detail);
        }
    }

    /// Every 200 led to a message that ended, and one entry holds each message.
    fn ends(&mut self) {
        for (phone, account) in self.accounts() {
            if account.ended < account.accepted {
                let complaint = format!(
                    "{} accepted, {} in the ledger, {} ended",
                    account.accepted, account.recorded, account.ended
                );
                let detail = self.story(&complaint).phone(phone, self.ledger).told();
                self.report(Invariant::Lost, masked(phone), detail);
            }
            if account.ids.len() > account.requests {
                let complaint =
                    format!("{} requests, {} messages", account.requests, account.ids.len());
                let detail = self.story(&complaint).phone(phone, self.ledger).told();
                self.report(Invariant::Phantom, masked(phone), detail);
            }
        }
        let mut seen = HashSet::new();
        for entry in &self.ledger.entries {
            if !seen.insert(&entry.id) {
                let detail = "it stands in the ledger twice".to_owned();
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
                // No back-off and no `Retry-After` of ours is that long.
                "expired" if entry.ended_at.is_some_and(|at| at + 60_000 < entry.expires_at) => {
                    "expired, but its code was good for another minute"
                }
                _ => continue,
            };
            let detail = self.story(complaint).entry(entry).told();
            self.report(Invariant::Lost, entry.id.clone(), detail);
        }
    }

    /// The gateway took nothing twice, and was asked again only where it may be.
    fn payments(&mut self) {
        let mut found = Vec::new();
        for (id, calls) in &self.calls {
            let paid = calls.iter().filter(|call| call.paid).count();
            if paid > 1 {
                found.push((*id, format!("the gateway took it {paid} times")));
                continue;
            }
            for pair in calls.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                let accepted =
                    first.whole && matches!(first.answer, Answer::Accept | Answer::BadBody);
                let cause = self.troubles(first.began_at, second.began_at, Trouble::hits_consumers);
                if accepted && cause.count() == 0 {
                    found.push((*id, "called again after it was accepted".to_owned()));
                    break;
                }
            }
        }
        found.sort_unstable();
        for (id, complaint) in found {
            let detail = self.story(&complaint).calls(id).told();
            self.report(Invariant::Doubled, id.to_owned(), detail);
        }
    }

    fn phantoms(&mut self) {
        let asked: HashSet<&str> =
            self.history.requests.iter().map(|request| &*request.phone).collect();
        for call in &self.history.calls {
            let complaint = if !asked.contains(&*call.phone) {
                "a call for a phone that nobody asked for"
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
            let detail = self.story(complaint).calls(&call.id).told();
            self.report(Invariant::Phantom, subject, detail);
        }
    }

    /// What the triggers caught.
    fn offences(&mut self) {
        for offence in &self.ledger.offences {
            let invariant = match &*offence.kind {
                "offset" => Invariant::Offset,
                _ => Invariant::Epoch,
            };
            // A topic that was wiped begins at nought again.
            let wiped = |trouble: &&Trouble| {
                trouble.kind == "topic-wipe" && trouble.overlaps(offence.at - 1_000, offence.at)
            };
            if invariant == Invariant::Offset && self.history.troubles.iter().any(|t| wiped(&t)) {
                continue;
            }
            let detail = self.story(&offence.detail).troubles(offence.at, offence.at).told();
            self.report(invariant, offence.subject.clone(), detail);
        }
    }

    /// Where each message was asked for after the one before had been accepted, the gateway took
    /// them in this order.
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
                // An unknown outcome may come from a call that was held up for long.
                .filter(|entry| entry.state == "sent")
                .filter_map(|entry| {
                    let first = self.calls_of(&entry.id).iter().find(|call| call.paid)?.began_at;
                    Some((*entry, first))
                })
                .collect();
            for pair in taken.windows(2) {
                let [(earlier, earlier_taken), (later, later_taken)] = pair else { continue };
                // What was written to another partition, or has to be published again, may come
                // later.
                let reordered =
                    self.troubles(earlier.accepted_at, *earlier_taken, Trouble::reorders).next();
                if earlier_taken > later_taken
                    && earlier.accepted_at < later.accepted_at
                    && reordered.is_none()
                {
                    let complaint =
                        format!("taken {} ms after the next one", earlier_taken - later_taken);
                    let detail = self.story(&complaint).entry(earlier).entry(later).told();
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
                self.troubles(from, to, Trouble::hits_consumers)
                    .next()
                    .map(|trouble| format!("{} of {}", trouble.kind, trouble.target))
            };
            let plain = self.history.memory_at(from) == Some(Memory::Plain);
            if let Some(cause) = ambiguous.or_else(disturbed).filter(|_| plain) {
                self.judgement.unknowns.push(UnknownOutcome { id: entry.id.clone(), cause });
                continue;
            }
            let complaint = if plain {
                "unknown, though every call of it was clear"
            } else {
                "unknown, though the gateway would have known it again"
            };
            let detail = self.story(complaint).entry(entry).told();
            self.report(Invariant::Unknown, entry.id.clone(), detail);
        }
    }

    fn crashes(&mut self) {
        for (process, at) in &self.history.crashes {
            let detail = self.story("it ended by itself").troubles(*at, *at).told();
            self.report(Invariant::Crash, process.clone(), detail);
        }
    }

    /// Whether the caller could not know what became of the message.
    fn is_ambiguous(&self, call: &Call) -> bool {
        let late = call.ended_at.is_none_or(|end| end - call.began_at + 200 > self.call_limit);
        !call.whole || late || matches!(call.answer, Answer::Error | Answer::Noise | Answer::Drip)
    }

    fn calls_of(&self, id: &str) -> &[&'a Call] {
        self.calls.get(id).map_or(&[], Vec::as_slice)
    }

    fn troubles(
        &self,
        from: Moment,
        to: Moment,
        of_interest: impl Fn(&Trouble) -> bool,
    ) -> impl Iterator<Item = &'a Trouble> {
        self.history.troubles_near(from, to).filter(move |trouble| of_interest(trouble))
    }

    fn story(&self, complaint: &str) -> Story<'_> {
        Story::new(complaint, self.history, &self.calls)
    }

    fn report(&mut self, invariant: Invariant, subject: String, detail: String) {
        self.judgement.violations.push(Violation { invariant, subject, detail });
    }
}

impl Trouble {
    /// Whether it can keep a client from hearing of an answer.
    fn hits_api(&self) -> bool {
        self.kind.ends_with("-api") || self.hits_embedded() || self.kind == SLOW
    }

    /// Whether it hits all parts of the embedded default.
    fn hits_embedded(&self) -> bool {
        self.kind.ends_with("-messager")
            || self.kind.starts_with("disk-")
            || self.kind.starts_with("file-")
    }

    /// Whether it can keep a consumer from hearing of an answer, or from recording it.
    fn hits_consumers(&self) -> bool {
        self.kind.ends_with("-consumer")
            || self.kind.starts_with("postgres-")
            || self.kind.contains("consumer-postgres")
            || self.kind.contains("consumer-gateway")
            || self.hits_embedded()
            || self.kind == SLOW
    }

    /// Whether it moves phones to other partitions, or loses what was published.
    fn reorders(&self) -> bool {
        matches!(&*self.kind, "partition-add" | "topic-wipe")
    }
}

#[cfg(test)]
mod tests;
