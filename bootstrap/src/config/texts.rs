//! The texts of SMS.

use std::{collections::BTreeSet, fmt, marker::PhantomData, sync::Arc};

use domain::{SmsTemplate, Templates, TextOptions};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{Number, Text},
    },
};

pub(super) const SECTION: Section = Section {
    title: "Texts",
    settings: &[
        Setting {
            name: "SMS_TEMPLATE",
            default: "Your code: {code}",
            example: None,
            values: Text("a text with {code} exactly once"),
            meaning: "Text of the SMS, if no text of `TEMPLATES_FILE` fits.",
        },
        Setting {
            name: "TEMPLATES_FILE",
            default: "",
            example: Some("templates.json"),
            values: Text("path of a JSON file"),
            meaning: "[Texts](api.md#texts) by purpose and locale.",
        },
        Setting {
            name: "SMS_MAX_SEGMENTS",
            default: "1",
            example: None,
            values: Number(1, 10),
            meaning: "SMS that one text may take. A longer text stops the start.",
        },
        Setting {
            name: "SMS_WEBOTP_HOST",
            default: "",
            example: Some("example.com"),
            values: Text("a DNS name, such as example.com"),
            meaning: "Adds the line `@host #code`, from which browsers fill in the code.",
        },
        Setting {
            name: "SMS_APP_HASH",
            default: "",
            example: Some("FA+9qCX9VSu"),
            values: Text("11 characters of A-Z, a-z, 0-9, + and /"),
            meaning: "Adds the hash by which Android hands the SMS to your app.",
        },
    ],
};

/// Texts by purpose and locale.
type Texts = Entries<Entries<String>>;

/// The entries of a JSON object in their order. A map would drop the first of two entries with the
/// same name.
#[derive(Debug)]
struct Entries<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Entries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries<V>, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// Reads all texts, and reports texts that cannot be sent.
pub(super) fn read(env: &mut Reader<'_>) -> Option<Arc<Templates>> {
    let default = env.parsed("SMS_TEMPLATE", |text| text.parse::<SmsTemplate>().ok());
    let max_segments = env.number::<usize>("SMS_MAX_SEGMENTS");
    let webotp_host = env.optional("SMS_WEBOTP_HOST", |text| text.parse().ok());
    let app_hash = env.optional("SMS_APP_HASH", |text| text.parse().ok());
    let texts = texts(env);

    let is_default_bad = default.is_none();
    // A bad default is reported together with the other bad texts.
    let default = default.or_else(|| Setting::of("SMS_TEMPLATE").default.parse().ok())?;
    let mut templates = Templates::new(default);
    let mut names = BTreeSet::new();
    for (purpose, locale, text) in flat(texts?) {
        if !names.insert(format!("{purpose}/{locale}").to_ascii_lowercase()) {
            env.problem("TEMPLATES_FILE", &format!("has two texts \"{purpose}/{locale}\""));
        }
        if let Err(error) = templates.add(&purpose, &locale, &text) {
            env.problem("TEMPLATES_FILE", &error.to_string());
        }
    }
    let templates = templates.with_options(TextOptions { webotp_host, app_hash });
    for lint in templates.lint(max_segments?) {
        // The report begins with the name of the text.
        env.problems.push(format!("SMS text {lint}"));
    }
    (!is_default_bad).then(|| Arc::new(templates))
}

fn texts(env: &mut Reader<'_>) -> Option<Texts> {
    let Some(path) = env.text("TEMPLATES_FILE") else { return Some(Entries(Vec::new())) };
    let text = match std::fs::read_to_string(path.trim()) {
        Ok(text) => text,
        Err(error) => {
            env.problem("TEMPLATES_FILE", &format!("is {path:?}, which cannot be read: {error}"));
            return None;
        }
    };
    match serde_json::from_str(&text) {
        Ok(texts) => Some(texts),
        Err(error) => {
            let form = "must be JSON of purpose, locale and text: {\"login\":{\"de\":\"…\"}}";
            env.problem("TEMPLATES_FILE", &format!("{form}: {error}"));
            None
        }
    }
}

fn flat(texts: Texts) -> impl Iterator<Item = (String, String, String)> {
    texts.0.into_iter().flat_map(|(purpose, locales)| {
        locales.0.into_iter().map(move |(locale, text)| (purpose.clone(), locale, text))
    })
}
