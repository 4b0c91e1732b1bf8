//! `messager guard`: lists the decisions of the guard, replays rules, and allows keys.

use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use application::{
    ReplayGuard, Replayed,
    ports::{GuardKey, GuardRecords, PastVerification, StoreError, StoredDecision},
};
use domain::{GuardMode, GuardRule, GuardScope, Region, SendLimits, VerificationId};

use super::{
    Output,
    progress::Progress,
    rfc3339,
    table::{Form, Table, text},
};
use crate::config::{GuardConfig, guard_rules};

#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Go through the verifications of the past and tell what rules and the limits by prefix and
    /// region would have blocked, and how many of these were approved.
    Replay {
        /// How far back: a number of s, m, h or d.
        #[arg(long, default_value = "7d", value_parser = period)]
        since: Duration,
        /// Rules to try instead of `GUARD_RULES`, such as adaptive or
        /// prefix:50:10,region:1000:5:shadow. A message that a rule blocks is not counted, unless
        /// the rule ends in :shadow.
        #[arg(long, value_parser = rules)]
        rules: Option<Rules>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the recorded and blocked messages, the newest first. Decisions of the same quarter of a
    /// second are in the order of rule and key.
    Decisions {
        /// How far back: a number of s, m, h or d.
        #[arg(long, default_value = "7d", value_parser = period)]
        since: Duration,
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Allow all messages to a prefix, a range or a region for some time, whatever the rules say. A
    /// running service knows within a second of the next message to it.
    Allow {
        /// As `decisions` shows it: 2327612, DE or 001. It holds for /v1 and for /api.
        #[arg(value_parser = allowed)]
        key: Allowed,
        /// For how long: a number of s, m, h or d. A later call replaces it, and 1s ends it.
        #[arg(long = "for", default_value = "1d", value_parser = period)]
        period: Duration,
    },
}

/// The keys that a text may stand for. Digits may be a prefix or a range, on `/v1` and on `/api`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed(Vec<GuardKey>);

/// Rules as one argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules(Vec<GuardRule>);

/// Runs `messager guard …`. `guard` has the rules and the window of the settings, and `limits` the
/// limits of `/v1`.
pub async fn execute(
    records: impl GuardRecords,
    guard: &GuardConfig,
    limits: &SendLimits,
    command: Command,
) -> anyhow::Result<()> {
    let json = matches!(
        command,
        Command::Replay { json: true, .. } | Command::Decisions { json: true, .. }
    );
    carry_out(records, guard, limits, command, Form::of(json), &mut Output).await
}

async fn carry_out(
    records: impl GuardRecords,
    guard: &GuardConfig,
    limits: &SendLimits,
    command: Command,
    form: Form,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    match command {
        Command::Replay { since, rules, .. } => {
            let rules = rules.map_or_else(|| guard.rules.clone(), |Rules(rules)| rules);
            let progress = Progress::of("verifications read");
            let replay = ReplayGuard::new(Watched { records, progress, read: AtomicU64::new(0) });
            let replayed = replay.execute(since, &rules, limits, guard.window).await?;
            drop(replay);
            let mut table = Table::new([
                "rule",
                "key",
                "verifications",
                "approved",
                "would be blocked",
                "of these approved",
            ]);
            for Replayed { rule, key, verifications, approvals, blocked, wronged } in replayed {
                table.row([
                    text(rule),
                    text(key),
                    verifications.into(),
                    approvals.into(),
                    blocked.into(),
                    wronged.into(),
                ]);
            }
            write!(out, "{}", table.text(form))?;
        }
        Command::Decisions { since, limit, .. } => {
            let mut table =
                Table::new(["decided", "rule", "key", "sends", "approvals", "verification"]);
            for decision in records.decisions(since, limit).await? {
                let StoredDecision { decided_at, rule, key, sends, approvals, verification } =
                    decision;
                table.row([
                    rfc3339(decided_at).into(),
                    rule.into(),
                    key.into(),
                    sends.into(),
                    approvals.into(),
                    verification.map(|id| id.to_string()).into(),
                ]);
            }
            write!(out, "{}", table.text(form))?;
        }
        Command::Allow { key: Allowed(keys), period } => {
            records.allow(&keys, period).await?;
            let key = keys.first().map_or("", |key| &key.key);
            writeln!(out, "{key} is allowed for {} seconds", period.as_secs())?;
        }
    }
    Ok(())
}

/// Records whose reading is shown.
#[derive(Debug)]
struct Watched<G> {
    records: G,
    progress: Progress,
    read: AtomicU64,
}

impl<G: GuardRecords> GuardRecords for Watched<G> {
    async fn past(
        &self,
        since: Duration,
        after: Option<(SystemTime, VerificationId)>,
        limit: usize,
    ) -> Result<Vec<PastVerification>, StoreError> {
        let page = self.records.past(since, after, limit).await?;
        let rows = u64::try_from(page.len()).unwrap_or(0);
        self.progress.at(self.read.fetch_add(rows, Ordering::Relaxed) + rows);
        Ok(page)
    }

    async fn decisions(
        &self,
        since: Duration,
        limit: usize,
    ) -> Result<Vec<StoredDecision>, StoreError> {
        self.records.decisions(since, limit).await
    }

    async fn allow(&self, keys: &[GuardKey], period: Duration) -> Result<(), StoreError> {
        self.records.allow(keys, period).await
    }
}

/// Parses a key with or without `api:`, with which the keys of `/api` begin. The key is allowed on
/// `/v1` and on `/api`.
fn allowed(text: &str) -> Result<Allowed, &'static str> {
    let text = text.strip_prefix(GuardKey::API).unwrap_or(text);
    let keys = |scope| {
        [text.to_owned(), format!("{}{text}", GuardKey::API)].map(|key| GuardKey { scope, key })
    };
    if text.parse::<Region>().is_ok() || text == GuardKey::NO_REGION {
        return Ok(Allowed(keys(GuardScope::Region).into()));
    }
    let is_prefix = (3..=11).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_digit());
    if is_prefix {
        Ok(Allowed([keys(GuardScope::Prefix), keys(GuardScope::Range)].concat()))
    } else {
        Err("a region of two capital letters, 001, ? for numbers without a region, or the 3 to 11 \
             digits of a prefix or a range, optionally after api:")
    }
}

fn period(text: &str) -> Result<Duration, &'static str> {
    let read = || {
        let unit = text.chars().next_back()?;
        let (number, seconds) = match unit {
            's' => (text.strip_suffix('s')?, 1),
            'm' => (text.strip_suffix('m')?, 60),
            'h' => (text.strip_suffix('h')?, 3_600),
            'd' => (text.strip_suffix('d')?, 86_400),
            _ => return None,
        };
        let number: u32 = number.parse().ok().filter(|number| (1..=1_000_000).contains(number))?;
        // Ten years, because nothing is stored for longer.
        Some(Duration::from_secs(u64::from(number) * seconds))
            .filter(|period| *period <= Duration::from_secs(3_650 * 86_400))
    };
    read().ok_or("a whole number of s, m, h or d, such as 7d, and at most 3650d")
}

fn rules(text: &str) -> Result<Rules, String> {
    guard_rules(text, GuardMode::Enforce).map(Rules).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use application::ports::MockGuardRecords;
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Line::try_parse_from(format!("guard {line}").split(' ')).map(|line| line.command)
    }

    async fn said(records: MockGuardRecords, line: &str) -> Vec<String> {
        let guard = GuardConfig {
            mode: None,
            rules: guard_rules("prefix:2:50", GuardMode::Shadow).unwrap(),
            window: Duration::from_secs(3_600),
        };
        let mut out = Vec::new();
        let limits = SendLimits { region: "4/1d".parse().unwrap(), ..SendLimits::default() };
        let command = parse(line).unwrap();
        carry_out(records, &guard, &limits, command, Form::Tabs, &mut out).await.unwrap();
        String::from_utf8(out).unwrap().lines().skip(1).map(str::to_owned).collect()
    }

    /// Returns five verifications of one prefix. Only the last one is approved.
    fn past() -> MockGuardRecords {
        let mut records = MockGuardRecords::new();
        records.expect_past().returning(|since, after, _| {
            assert_eq!(since, Duration::from_secs(2 * 86_400));
            assert_eq!(after, None);
            let one = |second| {
                let created_at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
                PastVerification {
                    id: VerificationId::NIL,
                    phone: format!("7999123{second:04}").parse().unwrap(),
                    region: "RU".parse().ok(),
                    sends: 1,
                    created_at,
                    approved_at: (second == 4).then_some(created_at),
                }
            };
            Ok((0..5).map(one).collect())
        });
        records
    }

    #[tokio::test]
    async fn replay_uses_the_rules_of_the_settings_or_of_the_option() {
        let of_settings = said(past(), "replay --since 2d").await;
        let named = said(past(), "replay --since 48h --rules region:4:50,prefix:9:50").await;

        // The last one would also have exceeded the limit by region.
        let limited = "region-1d\tRU\t5\t1\t1\t1";
        assert_eq!(of_settings, ["prefix:2:50:shadow\t7999123\t5\t1\t3\t1", limited]);
        assert_eq!(named, ["region:4:50:enforce\tRU\t5\t1\t1\t1"]);
    }

    #[tokio::test]
    async fn key_is_allowed_in_each_scope_that_it_fits() {
        use GuardScope::{Prefix, Range, Region};

        for (line, key, scopes, seconds) in [
            ("allow 2327612", "2327612", &[Prefix, Range][..], 86_400),
            ("allow api:2327612", "2327612", &[Prefix, Range], 86_400),
            ("allow DE --for 2h", "DE", &[Region], 7_200),
            ("allow 001 --for 1s", "001", &[Region], 1),
            ("allow api:SL", "SL", &[Region], 86_400),
            ("allow api:?", "?", &[Region], 86_400),
        ] {
            let expected: Vec<_> = scopes
                .iter()
                .flat_map(|scope| [(*scope, key.to_owned()), (*scope, format!("api:{key}"))])
                .collect();
            let mut records = MockGuardRecords::new();
            records
                .expect_allow()
                .withf(move |keys, period| {
                    keys.iter().map(|it| (it.scope, it.key.clone())).eq(expected.iter().cloned())
                        && *period == Duration::from_secs(seconds)
                })
                .once()
                .returning(|_, _| Ok(()));
            said(records, line).await;
        }
        for bad in [
            "allow",
            "allow *",
            "allow de",
            "allow 12",
            "allow 123456789012",
            "allow api:",
            "allow api:api:DE",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn decisions_are_listed() {
        let mut records = MockGuardRecords::new();
        records
            .expect_decisions()
            .withf(|since, limit| *since == Duration::from_secs(604_800) && *limit == 3)
            .once()
            .returning(|_, _| {
                let decision = StoredDecision {
                    decided_at: SystemTime::UNIX_EPOCH,
                    rule: "prefix:50:10:enforce".to_owned(),
                    key: "7999123".to_owned(),
                    sends: 50,
                    approvals: 4,
                    verification: None,
                };
                Ok(vec![decision])
            });

        let said = said(records, "decisions --limit 3").await;

        assert_eq!(said, ["1970-01-01T00:00:00Z\tprefix:50:10:enforce\t7999123\t50\t4\t-"]);
    }

    #[test]
    fn a_period_has_a_unit() {
        for (text, seconds) in [("1s", 1), ("2m", 120), ("3h", 10_800), ("3650d", 315_360_000)] {
            assert_eq!(period(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "d", "7", "0d", "-1d", "3651d", "7w", "1.5d", "7ы"] {
            assert!(period(bad).is_err(), "{bad}");
        }
        assert!(parse("replay --rules prefix:50").is_err());
    }
}
