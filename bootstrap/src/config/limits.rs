//! Rate limits of sends and of checks.

use std::collections::BTreeMap;

use domain::{CustomLimit, SendLimits, Windows};

use super::{
    reader::Reader,
    setting::{Section, Setting, Values},
};

/// The limits of each origin.
#[derive(Debug, Clone)]
pub(super) struct LimitConfig {
    pub(super) v1: SendLimits,
    pub(super) legacy: SendLimits,
}

/// The form of a limit. A macro, so that a text can contain it.
macro_rules! windows {
    () => {
        "off, or 1 to 3 limits by comma, each of another period: \
         1 to 1000000 in at most 30d, such as 5/1h,10/1d"
    };
}

const WINDOWS: Values = Values::Text(windows!());

/// The limit of `/api`. An older client cannot check a code, and so asks for another one.
const LEGACY_PHONE: &str = "20/1h";

pub(super) const SECTION: Section = Section {
    title: "Limits",
    settings: &[
        Setting {
            name: "LIMIT_PHONE",
            default: "5/1h,10/1d; on /api 20/1h",
            example: Some("5/1h,10/1d"),
            values: WINDOWS,
            meaning: "Messages to one number; see [limits](api.md#limits). If it is set, it holds on `/v1` and on `/api`.",
        },
        Setting {
            name: "LIMIT_IP",
            default: "10/1h,50/1d",
            example: None,
            values: WINDOWS,
            meaning: "Messages for one `ip` of a request on `/v1`. IPv6 addresses count by /64.",
        },
        Setting {
            name: "LIMIT_PREFIX",
            default: "1000/1h",
            example: Some("1000/1h"),
            values: WINDOWS,
            meaning: "Messages to one prefix: numbers that differ in their last four digits. If it \
                      is set, it holds on `/v1` and on `/api`; unset, it is off on `/api`.",
        },
        Setting {
            name: "LIMIT_REGION",
            default: "off",
            example: None,
            values: WINDOWS,
            meaning: "Messages to one country. It holds on `/v1` and on `/api`.",
        },
        Setting {
            name: "LIMIT_KEY",
            default: "off",
            example: None,
            values: WINDOWS,
            meaning: "Messages for one API key. It holds on `/v1` and on `/api`.",
        },
        Setting {
            name: "LIMIT_CHECK",
            default: "10/1h,50/1d",
            example: None,
            values: WINDOWS,
            meaning: "Guesses at the codes of one number.",
        },
        Setting {
            name: "LIMIT_CUSTOM",
            default: "",
            example: Some("device=5/1d;tenant=100/1h"),
            values: Values::Text(concat!(
                "name=limits by semicolon, such as device=5/1d;tenant=100/1h: each name once, none \
                 of ours, a letter and up to 31 more of a-z, 0-9 and -; limits as ",
                windows!()
            )),
            meaning: "Limits of your own, by name. A request names what they count, such as \
                      `\"limits\":{\"device\":\"a1\"}`.",
        },
    ],
};

pub(super) fn read(env: &mut Reader<'_>) -> LimitConfig {
    let defaults = SendLimits::default();
    let mut set = |name| env.optional(name, |text| text.parse::<Windows>().ok());
    let phone = set("LIMIT_PHONE");
    let ip = set("LIMIT_IP");
    let prefix = set("LIMIT_PREFIX");
    let region = set("LIMIT_REGION");
    let key = set("LIMIT_KEY");
    let check = set("LIMIT_CHECK");
    let legacy_phone = || LEGACY_PHONE.parse().expect("the default is a window");
    // A caller of `/api` names no address of its end user, and checks nothing there.
    let legacy = SendLimits {
        phone: phone.clone().unwrap_or_else(legacy_phone),
        prefix: prefix.clone().unwrap_or_default(),
        region: region.clone().unwrap_or_default(),
        key: key.clone().unwrap_or_default(),
        ..SendLimits::OFF
    };
    let v1 = SendLimits {
        phone: phone.unwrap_or(defaults.phone),
        ip: ip.unwrap_or(defaults.ip),
        prefix: prefix.unwrap_or(defaults.prefix),
        region: region.unwrap_or(defaults.region),
        key: key.unwrap_or(defaults.key),
        check: check.unwrap_or(defaults.check),
        custom: custom(env),
    };
    LimitConfig { v1, legacy }
}

fn custom(env: &mut Reader<'_>) -> BTreeMap<CustomLimit, Windows> {
    let limits = env.optional("LIMIT_CUSTOM", |text| {
        let mut limits = BTreeMap::new();
        for limit in text.split(';') {
            let (name, windows) = limit.split_once('=')?;
            let known = limits.insert(name.trim().parse().ok()?, windows.trim().parse().ok()?);
            if known.is_some() {
                return None;
            }
        }
        Some(limits)
    });
    limits.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_defaults_match_the_domain() {
        let SendLimits { phone, ip, prefix, region, key, check, .. } = SendLimits::default();

        let legacy = format!("{phone}; on /api {LEGACY_PHONE}");
        for (name, default) in [
            ("LIMIT_PHONE", legacy),
            ("LIMIT_IP", ip.to_string()),
            ("LIMIT_PREFIX", prefix.to_string()),
            ("LIMIT_REGION", region.to_string()),
            ("LIMIT_KEY", key.to_string()),
            ("LIMIT_CHECK", check.to_string()),
        ] {
            assert_eq!(Setting::of(name).default, default, "{name}");
        }
    }
}
