//! Codes: their length, how long they are valid, and the keys that protect them.

use std::time::Duration;

use application::{KeySource, VaultSettings};
use domain::CodeLength;

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Seconds, Secret, Text},
    },
};

#[derive(Debug, Clone)]
pub struct CodesConfig {
    pub length: CodeLength,
    pub ttl: Duration,
    /// The keys of a process that makes codes and sends them. One that does less needs fewer.
    pub vault: VaultSettings,
    /// Whether records that are not sealed become dead letters.
    pub require_sealed: bool,
}

pub(super) const SECTION: Section = Section {
    title: "Codes and their keys",
    settings: &[
        Setting {
            name: "CODE_LENGTH",
            default: "6",
            example: None,
            values: Text("a whole number from 4 to 10"),
            meaning: "Digits of a code.",
        },
        Setting {
            name: "CODE_TTL",
            default: "600",
            example: None,
            values: Seconds(1, 86_400),
            meaning: "Seconds for which a code is valid. An expired code is never sent.",
        },
        Setting {
            name: "CODE_PEPPER",
            default: "drawn",
            example: Some("p1:<base64 of 32 bytes>"),
            values: Secret("id:base64 of 32 bytes, up to 4 by comma"),
            meaning: "Key under which [codes are hashed](security.md#codes-at-rest). The first one signs, and all are accepted. \
                      Unset, a key is drawn and kept beside the database; `messager secrets show` \
                      prints it.",
        },
        Setting {
            name: "PAYLOAD_KEY",
            default: "drawn on the embedded default, otherwise unset",
            example: Some("k1:<base64 of 32 bytes>"),
            values: Secret("id:base64 of 32 bytes, up to 4 by comma"),
            meaning: "Key that [seals codes](security.md#sealing) on their way to the gateway. The first one seals, and \
                      all can open. Give it to the consumers first.",
        },
        Setting {
            name: "REQUIRE_SEALED",
            default: "false",
            example: None,
            values: OneOf(&["true", "false"]),
            meaning: "Whether consumers refuse records that are not sealed. With `true` such a \
                      record becomes a dead letter, and `PAYLOAD_KEY` is needed.",
        },
    ],
};

/// Reads the section. `is_embedded`: the database is an SQLite file, and no Kafka is set.
pub(super) fn read(env: &mut Reader<'_>, is_embedded: bool) -> Option<CodesConfig> {
    let length = env.parsed("CODE_LENGTH", |text| {
        text.parse::<usize>().ok().and_then(|digits| digits.try_into().ok())
    });
    let ttl = env.seconds("CODE_TTL");
    let vault = vault(env, is_embedded);
    let require_sealed = env.boolean("REQUIRE_SEALED");
    let has_no_key = matches!(vault.payload, KeySource::Absent);
    if require_sealed == Some(true) && has_no_key && !env.is_set("PAYLOAD_KEY") {
        env.problem("REQUIRE_SEALED", "is true, and needs PAYLOAD_KEY: nothing could be read");
    }

    Some(CodesConfig { length: length?, ttl: ttl?, vault, require_sealed: require_sealed? })
}

/// Codes pass through the embedded queue, and what is deleted from an SQLite file can be read there
/// for a long time: so they are sealed there, with a drawn key if none is set. Otherwise codes are
/// sealed only if the operator sets a key on both sides of Kafka.
fn vault(env: &mut Reader<'_>, is_embedded: bool) -> VaultSettings {
    let unset = if is_embedded { KeySource::Drawn } else { KeySource::Absent };
    env.defaults_to("PAYLOAD_KEY", if is_embedded { "drawn" } else { "" });
    VaultSettings {
        peppers: env.secret("CODE_PEPPER").map_or(KeySource::Drawn, KeySource::Set),
        payload: env.secret("PAYLOAD_KEY").map_or(unset, KeySource::Set),
    }
}
