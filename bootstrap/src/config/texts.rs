//! The texts of SMS.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use domain::{SmsTemplate, Templates, TextOptions};

use super::Reader;

/// By purpose and locale.
type Texts = BTreeMap<String, BTreeMap<String, String>>;

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
    let Some(path) = env.text("TEMPLATES_FILE") else { return Some(Texts::new()) };
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
    texts.into_iter().flat_map(|(purpose, locales)| {
        locales.into_iter().map(move |(locale, text)| (purpose.clone(), locale, text))
    })
}
