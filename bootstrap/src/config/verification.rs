//! Verifications: how often a code is sent again, and how long a verification is kept.

use std::time::Duration;

use application::{ResendPolicy, SendRules, SendSettings};
use domain::SendLimits;

use super::{
    numbers::NumberConfig,
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{Days, OneOf, Text},
    },
};

#[derive(Debug, Clone)]
pub struct VerificationConfig {
    /// What holds on `/v1`.
    pub sends: SendSettings,
    /// Whether a start must name the end user's address.
    pub require_ip: bool,
    pub retention: Duration,
}

pub(super) const SECTION: Section = Section {
    title: "Verifications",
    settings: &[
        Setting {
            name: "RESEND_AFTER",
            default: "60,90,120",
            example: None,
            values: Text("1 to 9 whole numbers of seconds from 1 to 3600, by comma"),
            meaning: "Seconds before each resend. There are as many resends as numbers.",
        },
        Setting {
            name: "RESEND_POLICY",
            default: "same",
            example: None,
            values: OneOf(&["same", "new"]),
            meaning: "Whether a resend has the same code or a new one.",
        },
        Setting {
            name: "REQUIRE_IP",
            default: "false",
            example: None,
            values: OneOf(&["true", "false"]),
            meaning: "Whether a start on `/v1` must name the end user's `ip`. A start without it is \
                      then answered 422.",
        },
        Setting {
            name: "VERIFICATION_RETENTION",
            default: "30",
            example: None,
            values: Days(1, 3_650),
            meaning: "Days for which verifications and the guard's decisions are kept.",
        },
    ],
};

/// Reads the section. `numbers` are `None` if theirs are bad, and `limits` are those of `/v1`.
pub(super) fn read(
    env: &mut Reader<'_>,
    numbers: Option<&NumberConfig>,
    limits: SendLimits,
) -> Option<VerificationConfig> {
    let pacing = env.parsed("RESEND_AFTER", |text| text.parse().ok());
    let resend_policy =
        env.choice("RESEND_POLICY", &[("same", ResendPolicy::Same), ("new", ResendPolicy::New)]);
    let require_ip = env.boolean("REQUIRE_IP");
    let retention = env.days("VERIFICATION_RETENTION");

    let rules = SendRules { numbers: numbers?.rules.clone(), limits, ..SendRules::NONE };
    Some(VerificationConfig {
        sends: SendSettings { rules, pacing: pacing?, resend_policy: resend_policy? },
        require_ip: require_ip?,
        retention: retention?,
    })
}
