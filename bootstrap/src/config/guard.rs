//! The guard against pumping.

use std::time::Duration;

use domain::{GuardMode, GuardRule, InvalidGuardRule};

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Seconds, Text},
    },
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardConfig {
    /// `None`: the guard is off.
    pub mode: Option<GuardMode>,
    /// Set even if the guard is off: a replay tries them.
    pub rules: Vec<GuardRule>,
    pub window: Duration,
}

pub(super) const SECTION: Section = Section {
    title: "Guard against pumping",
    settings: &[
        Setting {
            name: "GUARD",
            default: "enforce",
            example: None,
            values: OneOf(&["off", "shadow", "enforce"]),
            meaning: "What [the guard](api.md#the-guard) does if a rule fires: `shadow` only notes it, `enforce` blocks \
                      the message. A rule may name its own mode.",
        },
        Setting {
            name: "GUARD_WINDOW",
            default: "3600",
            example: None,
            values: Seconds(60, 604_800),
            meaning: "Seconds that the guard looks back. The adaptive rule also looks back a day.",
        },
        Setting {
            name: "GUARD_RULES",
            default: "adaptive",
            example: None,
            values: Text(
                "rules by comma, each adaptive, or prefix or region, the least number of sends and \
                 a percentage of approvals from 1 to 100, and if it is to differ from GUARD, \
                 shadow or enforce: adaptive,region:1000:5:shadow",
            ),
            meaning: "Rules of the guard. `prefix:50:10` fires after 50 messages to one prefix of \
                      which less than 10 % were approved.",
        },
    ],
};

impl GuardConfig {
    /// Returns the rules that are asked before each send. There are none while the guard is off.
    pub fn rules_in_force(&self) -> Vec<GuardRule> {
        if self.mode.is_some() { self.rules.clone() } else { Vec::new() }
    }
}

/// Parses rules by comma. `mode` is that of a rule that names none.
pub fn guard_rules(text: &str, mode: GuardMode) -> Result<Vec<GuardRule>, InvalidGuardRule> {
    text.split(',').map(|rule| GuardRule::parse(rule, mode)).collect()
}

pub(super) fn read(env: &mut Reader<'_>) -> Option<GuardConfig> {
    let mode = env.choice(
        "GUARD",
        &[
            ("off", None),
            ("shadow", Some(GuardMode::Shadow)),
            ("enforce", Some(GuardMode::Enforce)),
        ],
    );
    let window = env.seconds("GUARD_WINDOW");
    // If the guard is off, a replay shows what it would block.
    let of_rule = mode.flatten().unwrap_or(GuardMode::Enforce);
    let rules = env.parsed("GUARD_RULES", |text| guard_rules(text, of_rule).ok());
    Some(GuardConfig { mode: mode?, rules: rules?, window: window? })
}
