//! The numbers that messages are sent to.

use std::{collections::HashMap, str::FromStr};

use adapters_http::has_numbers;
use domain::{Code, NumberRules, PhoneNumber, Region, Regions};

use super::{
    process::Mode,
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Secret, Text},
    },
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberConfig {
    /// What holds on `/v1`.
    pub rules: NumberRules,
    /// What holds on `/api`.
    pub legacy_rules: NumberRules,
    /// The country of a number without a country code; `None`: such a number is refused.
    pub default_region: Option<Region>,
    /// Nothing is sent to these numbers, and their codes never change.
    pub test: HashMap<PhoneNumber, Code>,
}

pub(super) const SECTION: Section = Section {
    title: "Numbers",
    settings: &[
        Setting {
            name: "REGIONS",
            default: "*",
            example: Some("*"),
            values: Text(
                "none, or codes of two capital letters by comma, such as DE,AT; * stands for every \
                 country, and 001 for numbers of no country",
            ),
            meaning: "Regions that messages are sent to. [Numbers of no country](api.md#limits) are \
                      those of satellite networks and the like. If it is set, it holds on `/v1` and on \
                      `/api`; unset, `/api` sends to every region.",
        },
        Setting {
            name: "REFUSED_NUMBER_TYPES",
            default: "fixed_line,premium_rate,shared_cost,toll_free,voip,pager,uan,voicemail,\
                      personal_number",
            example: Some(
                "fixed_line,premium_rate,shared_cost,toll_free,voip,pager,uan,voicemail,\
                 personal_number",
            ),
            values: Text(
                "none, or some by comma of mobile, fixed_line_or_mobile, fixed_line, toll_free, \
                 premium_rate, shared_cost, voip, personal_number, pager, uan, voicemail, unknown",
            ),
            meaning: "Types of numbers that nothing is sent to. If it is set, it holds on `/v1` and \
                      on `/api`; unset, `/api` refuses no type.",
        },
        Setting {
            name: "DEFAULT_REGION",
            default: "",
            example: Some("DE"),
            values: Text("a code of two capital letters"),
            meaning: "Country of numbers that are written without a country code. Unset, `/v1` \
                      refuses such numbers, and `/api` cannot tell which number they are.",
        },
        Setting {
            name: "TEST_NUMBERS",
            default: "",
            example: Some("+79990000000:000000"),
            values: Secret("+phone:code by comma"),
            meaning: "[Test numbers](api.md#test-numbers), which have a fixed code and to which `/v1` \
                      sends nothing.",
        },
        Setting {
            name: "TEST_NUMBERS_IN_RELEASE",
            default: "refuse",
            example: None,
            values: OneOf(&["refuse", "allow"]),
            meaning: "Whether `TEST_NUMBERS` may be set with `APP_MODE=release`.",
        },
    ],
};

pub(super) fn read(env: &mut Reader<'_>, mode: Option<Mode>) -> Option<NumberConfig> {
    let allowed = env.parsed("REGIONS", |text| text.parse::<Regions>().ok());
    let refused = env.parsed("REFUSED_NUMBER_TYPES", words);
    let default_region = env.parsed("DEFAULT_REGION", |text| {
        let region = if text.is_empty() { None } else { Some(text.parse().ok()?) };
        (region != Some(Region::NON_GEOGRAPHIC)).then_some(region)
    });
    check_regions(env, "REGIONS", allowed.iter().flat_map(Regions::countries));
    let default_region = default_region.flatten();
    check_regions(env, "DEFAULT_REGION", default_region.iter());
    let test = test_numbers(env, mode);

    let rules = NumberRules { allowed: allowed?, refused: refused? };
    let NumberRules { allowed, refused } = rules.clone();
    let none = NumberRules::NONE;
    let legacy_rules = NumberRules {
        allowed: if env.is_set("REGIONS") { allowed } else { none.allowed },
        refused: if env.is_set("REFUSED_NUMBER_TYPES") { refused } else { none.refused },
    };
    Some(NumberConfig { legacy_rules, rules, default_region, test: test? })
}

/// Reports regions that do not exist: nothing would ever be sent there.
fn check_regions<'a>(env: &mut Reader<'_>, name: &str, regions: impl Iterator<Item = &'a Region>) {
    let unknown: Vec<&str> =
        regions.filter(|region| !has_numbers(**region)).map(Region::as_str).collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        env.problem(name, &format!("has {unknown}: no country with phone numbers has this code"));
    }
}

/// Parses words by comma, or `none`.
fn words<T: FromStr, L: Default + FromIterator<T>>(text: &str) -> Option<L> {
    if text == "none" {
        return Some(L::default());
    }
    text.split(',').map(|word| word.trim().parse().ok()).collect()
}

fn test_numbers(env: &mut Reader<'_>, mode: Option<Mode>) -> Option<HashMap<PhoneNumber, Code>> {
    let in_release = env.choice("TEST_NUMBERS_IN_RELEASE", &[("refuse", false), ("allow", true)]);
    let text = env.text("TEST_NUMBERS").unwrap_or_default();
    let mut numbers = HashMap::new();
    for number in text.split(',').filter(|number| !number.trim().is_empty()) {
        let read = number.trim().split_once(':').and_then(|(phone, code)| {
            Some((phone.strip_prefix('+')?.parse().ok()?, code.parse().ok()?))
        });
        let is_new = read.is_some_and(|(phone, code)| numbers.insert(phone, code).is_none());
        if !is_new {
            // The value is not shown: it has a code.
            env.problem(
                "TEST_NUMBERS",
                "must be +phone:code by comma, such as +79990000000:000000: each phone once, \
                 with 7 to 15 digits; codes have 4 to 10",
            );
            return None;
        }
    }
    if !numbers.is_empty() && mode == Some(Mode::Release) && in_release == Some(false) {
        env.problem(
            "TEST_NUMBERS",
            "are refused with APP_MODE=release: anyone who knows one is verified without an SMS; \
             TEST_NUMBERS_IN_RELEASE=allow accepts them in release mode",
        );
    }
    in_release.map(|_| numbers)
}
