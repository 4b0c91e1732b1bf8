//! The texts of SMS.

use std::{collections::BTreeSet, fmt, marker::PhantomData, sync::Arc};

use domain::{SmsTemplate, Templates, TextOptions};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::Reader;

/// By purpose and locale.
type Texts = Entries<Entries<String>>;

/// The entries of a JSON object as they stand there: of two with one name a map would keep the last
/// one and say nothing.
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

/// Reads all texts and refuses those that are not fit to be sent.
pub(super) fn read(env: &mut Reader<'_>) -> Option<Arc<Templates>> {
    let default = env.parsed(
        "SMS_TEMPLATE",
        "a text with {code} exactly once",
        "Your code: {code}",
        |text| text.parse::<SmsTemplate>().ok(),
    );
    let max_segments = env.number::<usize>("SMS_MAX_SEGMENTS", 1, 1, 10);
    let webotp_host = env.optional("SMS_WEBOTP_HOST", "a DNS name, such as example.com");
    let app_hash = env.optional("SMS_APP_HASH", "11 characters of A-Z, a-z, 0-9, + and /");
    let texts = texts(env);

    let is_default_bad = default.is_none();
    // The others are looked at beside a bad one, which is reported.
    let default = default.or_else(|| "Your code: {code}".parse().ok())?;
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
        // It begins with the name of the text.
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
