//! Tracks which messages a relay has read from the outbox, and when it published them.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ops::RangeInclusive,
    time::Duration,
};

use tokio::time::Instant;

use crate::ports::Reached;

/// How long after it was drawn a number can still become visible: a statement that stores messages
/// may take ten seconds, and its commit ten more.
const DECIDED_AFTER: Duration = Duration::from_secs(25);

/// How long after a publication a group must reach the end of the topic, so that it has surely read
/// the message.
const MARGIN: Duration = Duration::from_secs(2);

/// How many times as long a message waits if no group has read past it.
const UNREAD_TIMES: u32 = 16;

/// How often the cursor is noted within `confirm_within`.
const MARKS: u32 = 30;

/// The progress of one relay.
#[derive(Debug)]
pub(super) struct Progress {
    confirm_within: Duration,
    /// The highest number that was found.
    cursor: i64,
    /// Numbers up to the cursor that are not known to be published, by the first of each range.
    gaps: BTreeMap<i64, Gap>,
    /// Where the cursor was, oldest first.
    marks: VecDeque<Mark>,
    /// Publications of messages that were in a gap. All others were published before the first mark
    /// that includes them.
    apart: HashMap<i64, Publication>,
    /// Messages that are never overdue.
    never_repeated: HashSet<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Gap {
    last: i64,
    /// When it was noted. A message in it had its number by then.
    since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    cursor: i64,
}

#[derive(Debug, Clone, Copy)]
struct Publication {
    times: u32,
    at: Instant,
}

/// The result of a look, after the broker has answered.
#[derive(Debug)]
pub(super) struct Looked<'a> {
    /// When the look began.
    pub(super) asked: Instant,
    /// The numbers that were found, in their order, and whether each was published.
    pub(super) found: &'a [(i64, bool)],
}

impl Progress {
    /// Begins after `published`, which another relay reached.
    pub(super) fn after(published: i64, confirm_within: Duration) -> Self {
        let mark = Mark { at: Instant::now(), cursor: published };
        Self {
            confirm_within,
            cursor: published,
            gaps: BTreeMap::new(),
            marks: VecDeque::from([mark]),
            apart: HashMap::new(),
            never_repeated: HashSet::new(),
        }
    }

    pub(super) fn reached(&self) -> Reached {
        let published = self.gaps.first_key_value().map_or(self.cursor, |(first, _)| first - 1);
        Reached { published, read: self.cursor }
    }

    pub(super) fn cursor(&self) -> i64 {
        self.cursor
    }

    /// Returns the numbers up to the cursor that are to be read again.
    pub(super) fn gaps(&self) -> Vec<RangeInclusive<i64>> {
        self.gaps.iter().map(|(first, gap)| *first..=gap.last).collect()
    }

    /// Notes the messages that a look found, and whether they were published.
    pub(super) fn note(&mut self, looked: &Looked<'_>) {
        let now = Instant::now();
        let last = looked.found.last().map(|(sequence, _)| *sequence);
        // A look that reached its limit says nothing about higher numbers.
        let covered = last.unwrap_or(i64::MAX);
        self.gaps.retain(|_, gap| {
            let is_decided = looked.asked.saturating_duration_since(gap.since) >= DECIDED_AFTER;
            !is_decided || gap.last > covered
        });
        let before = self.cursor;
        if let Some(last) = last.filter(|last| *last > before) {
            self.gaps.insert(before + 1, Gap { last, since: now });
            self.cursor = last;
        }
        for (sequence, is_published) in looked.found.iter().copied() {
            self.close(sequence);
            if !is_published {
                self.open(sequence, now);
            } else if sequence <= before {
                let publication = Publication { times: 0, at: now };
                let publication = self.apart.entry(sequence).or_insert(publication);
                *publication = Publication { times: publication.times + 1, at: now };
            }
        }
        self.mark(now);
    }

    /// Returns the number up to which messages may be overdue. `read` is how long ago a group had read
    /// all that was on the topic then.
    pub(super) fn overdue_until(&self, read: Option<Duration>) -> Option<i64> {
        let patience = self.patience(1, read);
        let past = self.marks.partition_point(|mark| mark.at.elapsed() >= patience);
        Some(self.marks.get(past.checked_sub(1)?)?.cursor)
    }

    /// Returns whether a message up to [`Progress::overdue_until`] must be published again.
    pub(super) fn is_overdue(&self, sequence: i64, read: Option<Duration>) -> bool {
        if self.is_gap(sequence) || self.never_repeated.contains(&sequence) {
            return false;
        }
        let publication = self.apart.get(&sequence);
        publication.is_none_or(|it| it.at.elapsed() >= self.patience(it.times, read))
    }

    /// Notes messages that another publication does not help.
    pub(super) fn never_repeat(&mut self, sequences: &[i64]) {
        self.never_repeated.extend(sequences);
    }

    /// Makes published messages gaps again. Neighbours become one gap.
    pub(super) fn reopen(&mut self, sequences: &[i64]) {
        let now = Instant::now();
        for sequence in sequences.iter().copied() {
            self.apart.entry(sequence).or_insert(Publication { times: 1, at: now }).at = now;
            self.open(sequence, now);
        }
    }

    /// Forgets what is known of messages up to `until` that are no longer in `there`.
    pub(super) fn forget_taken(&mut self, until: i64, there: &HashSet<i64>) {
        let stays = |sequence: &i64| *sequence > until || there.contains(sequence);
        self.apart.retain(|sequence, _| stays(sequence));
        self.never_repeated.retain(stays);
    }

    /// Returns how long a message waits after it was published `times` times. The time doubles with
    /// each publication: a message that groups read but cannot take over must not come back for
    /// ever.
    fn patience(&self, times: u32, read: Option<Duration>) -> Duration {
        let least = self.confirm_within * (1 << times.saturating_sub(1).min(10));
        let most = least * UNREAD_TIMES;
        read.map_or(most, |read| least.max(read + MARGIN).min(most))
    }

    fn mark(&mut self, now: Instant) {
        let cursor = self.cursor;
        let is_due =
            |mark: &Mark| mark.cursor < cursor && now - mark.at >= self.confirm_within / MARKS;
        if self.marks.back().is_none_or(is_due) {
            self.marks.push_back(Mark { at: now, cursor });
        }
        // Of the marks that are older than the longest patience, the newest is enough.
        let longest = self.patience(1, None);
        while self.marks.get(1).is_some_and(|second| now - second.at >= longest) {
            self.marks.pop_front();
        }
    }

    fn is_gap(&self, sequence: i64) -> bool {
        self.gaps.range(..=sequence).next_back().is_some_and(|(_, gap)| sequence <= gap.last)
    }

    /// Makes a number a gap. It must not be in one.
    fn open(&mut self, sequence: i64, since: Instant) {
        match self.gaps.range_mut(..sequence).next_back() {
            Some((_, before)) if before.last + 1 == sequence && before.since == since => {
                before.last = sequence;
            }
            _ => {
                self.gaps.insert(sequence, Gap { last: sequence, since });
            }
        }
    }

    /// Takes a number out of its gap, if it is in one.
    fn close(&mut self, sequence: i64) {
        let Some((&first, &gap)) = self.gaps.range(..=sequence).next_back() else { return };
        if sequence > gap.last {
            return;
        }
        self.gaps.remove(&first);
        if first < sequence {
            self.gaps.insert(first, Gap { last: sequence - 1, ..gap });
        }
        if sequence < gap.last {
            self.gaps.insert(sequence + 1, gap);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const CONFIRM_WITHIN: Duration = Duration::from_secs(30);

    fn progress() -> Progress {
        Progress::after(0, CONFIRM_WITHIN)
    }

    /// Notes a look that began now.
    fn look(progress: &mut Progress, found: &[(i64, bool)]) {
        progress.note(&Looked { asked: Instant::now(), found });
    }

    fn gaps(progress: &Progress) -> Vec<(i64, i64)> {
        let bounds = |range: &RangeInclusive<i64>| (*range.start(), *range.end());
        progress.gaps().iter().map(bounds).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn numbers_that_were_passed_over_and_not_published_are_read_again() {
        let mut progress = progress();

        look(&mut progress, &[(3, true), (4, false), (5, false), (6, true), (9, true)]);

        assert_eq!(gaps(&progress), [(1, 2), (4, 5), (7, 8)]);
        assert_eq!(progress.reached(), Reached { published: 0, read: 9 });
        look(&mut progress, &[(1, true), (2, true), (5, true)]);
        assert_eq!(gaps(&progress), [(4, 4), (7, 8)]);
        assert_eq!(progress.reached(), Reached { published: 3, read: 9 });
    }

    #[tokio::test(start_paused = true)]
    async fn number_is_given_up_when_a_look_does_not_find_it_after_its_time() {
        let mut progress = progress();
        look(&mut progress, &[(2, false), (4, true)]);

        // This look began too early.
        let asked = Instant::now() + DECIDED_AFTER - Duration::from_millis(1);
        advance(DECIDED_AFTER).await;
        progress.note(&Looked { asked, found: &[(2, false), (4, true)] });
        assert_eq!(gaps(&progress), [(1, 1), (2, 2), (3, 3)]);

        // This one may not have got to 3.
        look(&mut progress, &[(2, false)]);
        assert_eq!(gaps(&progress), [(2, 2), (3, 3)]);

        look(&mut progress, &[(2, false), (5, true)]);
        assert_eq!(gaps(&progress), [(2, 2)]);
        advance(DECIDED_AFTER).await;
        look(&mut progress, &[]);
        assert!(gaps(&progress).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn message_is_overdue_once_a_group_has_read_past_it() {
        let mut progress = progress();
        advance(Duration::from_secs(1)).await;
        look(&mut progress, &[(1, true)]);
        advance(CONFIRM_WITHIN).await;
        let (past, almost) = (Duration::from_secs(28), Duration::from_millis(28_001));

        assert_eq!(progress.overdue_until(Some(past)), Some(1));
        assert_eq!(progress.overdue_until(Some(almost)), Some(0));
        assert_eq!(progress.overdue_until(None), None);
        advance(15 * CONFIRM_WITHIN).await;
        assert_eq!(progress.overdue_until(None), Some(1));
        assert!(progress.is_overdue(1, None));
    }

    #[tokio::test(start_paused = true)]
    async fn each_publication_doubles_the_patience() {
        let mut progress = progress();
        look(&mut progress, &[(1, true)]);
        advance(Duration::from_secs(1)).await;
        look(&mut progress, &[]);
        let read = Some(Duration::ZERO);
        for times in [1, 2, 4] {
            advance(times * CONFIRM_WITHIN / 2).await;
            assert!(times == 1 || !progress.is_overdue(1, read));
            advance(times * CONFIRM_WITHIN / 2).await;
            assert_eq!(progress.overdue_until(read), Some(1));
            assert!(progress.is_overdue(1, read));

            progress.reopen(&[1]);
            assert!(!progress.is_overdue(1, read), "it is a gap");
            assert_eq!(progress.reached().published, 0);
            look(&mut progress, &[(1, true)]);
        }
    }

    /// The clock is not paused: each look at it gives another time.
    #[tokio::test]
    async fn neighbours_that_are_reopened_are_one_gap() {
        let mut progress = progress();
        look(&mut progress, &[(1, true), (2, true), (3, true), (4, true), (5, true)]);

        progress.reopen(&[1, 2, 3, 5]);

        assert_eq!(gaps(&progress), [(1, 3), (5, 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn message_that_was_held_is_overdue_from_its_publication_on() {
        let mut progress = progress();
        look(&mut progress, &[(1, false), (2, true)]);
        advance(Duration::from_secs(1)).await;
        look(&mut progress, &[(1, false)]);
        advance(CONFIRM_WITHIN).await;
        look(&mut progress, &[(1, true)]);
        let read = Some(Duration::ZERO);

        assert_eq!(progress.overdue_until(read), Some(2));
        assert!(progress.is_overdue(2, read) && !progress.is_overdue(1, read));
        progress.forget_taken(2, &HashSet::from([1]));
        assert!(!progress.is_overdue(1, read));
        progress.forget_taken(2, &HashSet::new());
        assert!(progress.apart.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn marks_are_few() {
        let mut progress = progress();
        for number in 1..=10_000 {
            look(&mut progress, &[(number, true)]);
            advance(Duration::from_millis(100)).await;
        }

        assert!((480..500).contains(&progress.marks.len()), "{}", progress.marks.len());
        assert!(progress.gaps.is_empty());
    }
}
