use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{Code, Encoding, InvalidSmsTemplate, Measure, SmsTemplate};

/// Names a text: what it is for and its language, `login/de-at`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateKey {
    text: String,
    slash: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a text is named purpose/locale: a-z, 0-9, - and _, and a language tag or {DEFAULT}")]
pub struct InvalidTemplateKey;

/// The texts that an SMS may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templates {
    default: SmsTemplate,
    texts: BTreeMap<TemplateKey, SmsTemplate>,
    options: TextOptions,
}

/// Lines that let a phone find the code by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// The last line is `@host #code`: browsers on that host fill the code in (`WebOTP`).
    pub webotp_host: Option<WebOtpHost>,
    /// An Android app with that hash reads the SMS (SMS Retriever).
    pub app_hash: Option<AppHash>,
}

/// A DNS name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOtpHost(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a DNS name of letters, digits, hyphens and dots")]
pub struct InvalidWebOtpHost;

/// Eleven characters that an app's package and signature give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppHash(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hash of an app has 11 characters of base64")]
pub struct InvalidAppHash;

/// Why a text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    #[error("{name:?}: {error}")]
    Key { name: String, error: InvalidTemplateKey },
    #[error("{name:?}: {error}")]
    Text { name: String, error: InvalidSmsTemplate },
}

/// What is wrong with a text, with the longest code in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lint {
    #[error("{name}: takes {segments} SMS in {encoding}{costly}, and {max} are allowed")]
    TooLong { name: String, segments: usize, encoding: &'static str, costly: Costly, max: usize },
    #[error("{name}: has {bytes} bytes, and an app is told only of an SMS of up to 140")]
    TooLongForApp { name: String, bytes: usize },
    #[error("{name}: has a control character")]
    Control { name: String },
    #[error("{name}: has nothing but the code")]
    Bare { name: String },
}

/// The character for which a text has UCS-2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costly(Option<char>);

/// The purpose that is meant where none is named, and the locale of a text for all others.
const DEFAULT: &str = "default";

/// What Android's SMS Retriever reads.
const APP_BYTES: usize = 140;

impl TemplateKey {
    fn new(purpose: &str, locale: &str) -> Result<Self, InvalidTemplateKey> {
        let text = format!("{purpose}/{locale}").to_ascii_lowercase();
        let (purpose, locale) = text.split_at(purpose.len());
        let named = (1..=32).contains(&purpose.len())
            && purpose.starts_with(|first: char| first.is_ascii_lowercase())
            && purpose.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        let slash = purpose.len();
        if named && is_locale(&locale[1..]) {
            Ok(Self { text, slash })
        } else {
            Err(InvalidTemplateKey)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn purpose(&self) -> &str {
        &self.text[..self.slash]
    }

    pub fn locale(&self) -> &str {
        &self.text[self.slash + 1..]
    }
}

impl FromStr for TemplateKey {
    type Err = InvalidTemplateKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (purpose, locale) = text.split_once('/').ok_or(InvalidTemplateKey)?;
        Self::new(purpose, locale)
    }
}

impl Templates {
    /// One text for everything.
    pub fn new(default: SmsTemplate) -> Self {
        Self { default, texts: BTreeMap::new(), options: TextOptions::default() }
    }

    /// Adds a text for a purpose (`default`: for where none is named) and a locale (`default`: for
    /// all that have none of their own).
    pub fn add(&mut self, purpose: &str, locale: &str, text: &str) -> Result<(), InvalidTemplate> {
        let name = || format!("{purpose}/{locale}");
        let key = TemplateKey::new(purpose, locale)
            .map_err(|error| InvalidTemplate::Key { name: name(), error })?;
        let template =
            text.parse().map_err(|error| InvalidTemplate::Text { name: name(), error })?;
        self.texts.insert(key, template);
        Ok(())
    }

    #[must_use]
    pub fn with_options(self, options: TextOptions) -> Self {
        Self { options, ..self }
    }

    /// Whether there is a text for this purpose.
    pub fn has(&self, purpose: &str) -> bool {
        purpose == DEFAULT || self.texts.keys().any(|key| key.purpose() == purpose)
    }

    /// Names the text for a purpose and a locale: of this language in this country, of this
    /// language, for all; first of this purpose, then of none. None: the default text.
    ///
    /// A locale that is unknown, or no locale at all, has what is for all.
    pub fn resolve(&self, purpose: Option<&str>, locale: Option<&str>) -> Option<TemplateKey> {
        let purpose = purpose.unwrap_or(DEFAULT);
        let locale = locale.unwrap_or(DEFAULT).to_ascii_lowercase();
        let mut locales = vec![locale.as_str()];
        while let Some((shorter, _)) = locales[locales.len() - 1].rsplit_once('-') {
            locales.push(shorter);
        }
        locales.push(DEFAULT);
        [purpose, DEFAULT].into_iter().find_map(|purpose| {
            locales.iter().find_map(|locale| {
                let key = TemplateKey::new(purpose, locale).ok()?;
                self.texts.contains_key(&key).then_some(key)
            })
        })
    }

    /// The text of an SMS. Whoever named the text may have had others than are here: then it is
    /// the one that comes next to it.
    pub fn render(&self, key: Option<&TemplateKey>, code: &Code) -> String {
        let known = key.and_then(|key| self.resolve(Some(key.purpose()), Some(key.locale())));
        let template = known.and_then(|key| self.texts.get(&key)).unwrap_or(&self.default);
        self.complete(template, code)
    }

    /// What is wrong with the texts; `max_segments` is how many SMS one may take.
    pub fn lint(&self, max_segments: usize) -> Vec<Lint> {
        let named = self.texts.iter().map(|(key, template)| (key.as_str(), template));
        std::iter::once(("SMS_TEMPLATE", &self.default))
            .chain(named)
            .flat_map(|(name, template)| self.lint_one(name, template, max_segments))
            .collect()
    }

    /// What each text costs, by its name, with the longest code in it.
    pub fn measures(&self) -> Vec<(String, Measure)> {
        let measure = |template| Measure::of(&self.complete(template, &longest_code()));
        let named = self.texts.iter().map(|(key, it)| (key.as_str().to_owned(), measure(it)));
        std::iter::once(("SMS_TEMPLATE".to_owned(), measure(&self.default))).chain(named).collect()
    }

    fn lint_one(&self, name: &str, template: &SmsTemplate, max: usize) -> Vec<Lint> {
        let name = || name.to_owned();
        let code = longest_code();
        let (alone, text) = (template.render(&code), self.complete(template, &code));
        let Measure { encoding, segments, costly } = Measure::of(&text);
        let mut lints = Vec::new();
        if segments > max {
            let (encoding, costly) = (encoding.as_str(), Costly(costly));
            lints.push(Lint::TooLong { name: name(), segments, encoding, costly, max });
        }
        let bytes = match encoding {
            Encoding::Gsm7 => text.len(),
            Encoding::Ucs2 => 2 * text.encode_utf16().count(),
        };
        if self.options.app_hash.is_some() && bytes > APP_BYTES {
            lints.push(Lint::TooLongForApp { name: name(), bytes });
        }
        if alone.chars().any(|char| char.is_control() && char != '\n') {
            lints.push(Lint::Control { name: name() });
        }
        if alone.trim() == code.as_str() {
            lints.push(Lint::Bare { name: name() });
        }
        lints
    }

    /// The last line is the browser's: it reads no other.
    fn complete(&self, template: &SmsTemplate, code: &Code) -> String {
        let mut text = template.render(code);
        if let Some(AppHash(hash)) = &self.options.app_hash {
            text.push('\n');
            text.push_str(hash);
        }
        if let Some(WebOtpHost(host)) = &self.options.webotp_host {
            text.push_str("\n\n@");
            text.push_str(host);
            text.push_str(" #");
            text.push_str(code.as_str());
        }
        text
    }
}

impl FromStr for WebOtpHost {
    type Err = InvalidWebOtpHost;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= 253 && text.split('.').all(label) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidWebOtpHost)
        }
    }
}

impl FromStr for AppHash {
    type Err = InvalidAppHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
        let fits = text.len() == 11 && text.bytes().all(plain);
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidAppHash) }
    }
}

impl fmt::Display for Costly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(char) => write!(f, " because of {char:?}"),
            None => Ok(()),
        }
    }
}

fn is_locale(text: &str) -> bool {
    let mut parts = text.split('-');
    let letters = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphabetic());
    let language = |part: &str| (2..=3).contains(&part.len()) && letters(part);
    let more = |part: &str| {
        (2..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    text == DEFAULT || (text.len() <= 35 && parts.next().is_some_and(language) && parts.all(more))
}

fn longest_code() -> Code {
    "0000000000".parse().expect("ten digits are a code")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn templates() -> Templates {
        let mut templates = Templates::new("Your code: {code}".parse().unwrap());
        for (purpose, locale, text) in [
            ("default", "de", "Ihr Code: {code}"),
            ("login", "de", "Anmelden mit {code}"),
            ("login", "de-AT", "Einloggen mit {code}"),
            ("login", "default", "Log in with {code}"),
            ("pay", "fr", "Payez avec {code}"),
        ] {
            templates.add(purpose, locale, text).unwrap();
        }
        templates
    }

    #[test]
    fn fallback_chain() {
        let templates = templates();

        for (purpose, locale, key) in [
            (None, None, None),
            (None, Some("en"), None),
            (None, Some("de-CH"), Some("default/de")),
            (Some("login"), Some("de-AT"), Some("login/de-at")),
            (Some("login"), Some("DE-at-1996"), Some("login/de-at")),
            (Some("login"), Some("de-CH"), Some("login/de")),
            (Some("login"), Some("fr"), Some("login/default")),
            (Some("login"), None, Some("login/default")),
            (Some("pay"), Some("fr-CA"), Some("pay/fr")),
            (Some("pay"), Some("de"), Some("default/de")),
            (Some("pay"), Some("en"), None),
        ] {
            let found = templates.resolve(purpose, locale);
            assert_eq!(found.as_ref().map(TemplateKey::as_str), key, "{purpose:?} {locale:?}");
        }
        assert!(templates.has("default") && templates.has("pay") && !templates.has("reset"));
    }

    #[test]
    fn renders_the_text_that_was_named_or_the_next_to_it() {
        let templates = templates();
        let code = "0042".parse().unwrap();
        let render = |key: Option<&str>| {
            templates.render(key.map(|key| key.parse().unwrap()).as_ref(), &code)
        };

        assert_eq!(render(None), "Your code: 0042");
        assert_eq!(render(Some("login/de-at")), "Einloggen mit 0042");
        assert_eq!(render(Some("login/es")), "Log in with 0042");
        assert_eq!(render(Some("reset/es")), "Your code: 0042");
    }

    #[test]
    fn webotp_last_line() {
        let options = TextOptions {
            webotp_host: Some("Example.com".parse().unwrap()),
            app_hash: Some("FA+9qCX9VSu".parse().unwrap()),
        };

        let text = templates().with_options(options).render(None, &"123456".parse().unwrap());

        assert_eq!(text, "Your code: 123456\nFA+9qCX9VSu\n\n@example.com #123456");
        assert_eq!(text.lines().last(), Some("@example.com #123456"));
    }

    #[test]
    fn names_are_purpose_and_locale() {
        for good in ["login/de", "a/default", "a_b-1/zh-hant-tw", "Login/DE"] {
            assert!(good.parse::<TemplateKey>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "login",
            "/de",
            "login/",
            "1a/de",
            "login/d",
            "login/de_at",
            "a b/de",
            "login/de/at",
            "login;/de",
            "lögin/de",
            "login/дe",
            "login/de-",
        ] {
            assert_eq!(bad.parse::<TemplateKey>(), Err(InvalidTemplateKey), "{bad}");
        }
    }

    #[test]
    fn a_text_that_cannot_be_used_is_refused_by_its_name() {
        let mut templates = templates();

        let key = templates.add("lo gin", "de", "{code}").unwrap_err().to_string();
        let text = templates.add("login", "en", "no place").unwrap_err().to_string();

        assert!(key.starts_with("\"lo gin/de\": "), "{key}");
        assert!(text.starts_with("\"login/en\": "), "{text}");
    }

    #[test]
    fn lint_says_what_is_wrong_with_which_text() {
        let mut templates = Templates::new("{code}".parse().unwrap());
        templates.add("a", "ru", &format!("{{code}}{}", "ы".repeat(61))).unwrap();
        templates.add("b", "en", &format!("{{code}}{}", "a".repeat(150))).unwrap();
        templates.add("c", "en", "{code}\tis it").unwrap();

        let lints: Vec<String> = templates.lint(1).iter().map(ToString::to_string).collect();

        assert_eq!(
            lints,
            [
                "SMS_TEMPLATE: has nothing but the code",
                "a/ru: takes 2 SMS in UCS-2 because of 'ы', and 1 are allowed",
                "c/en: has a control character",
            ]
        );
        assert_eq!(templates.lint(2).len(), 2);
        let app = TextOptions { app_hash: "FA+9qCX9VSu".parse().ok(), ..TextOptions::default() };
        let lints = templates.with_options(app).lint(2);
        assert!(lints.contains(&Lint::TooLongForApp { name: "b/en".to_owned(), bytes: 172 }));
    }

    #[test]
    fn hosts_and_hashes_have_their_form() {
        for bad in ["", "-a.com", "a..com", "a.com/", "a b", "ы.рф", "a.com:8080"] {
            assert!(bad.parse::<WebOtpHost>().is_err(), "{bad}");
        }
        for bad in ["", "FA+9qCX9VS", "FA+9qCX9VSuu", "FA-9qCX9VSu"] {
            assert!(bad.parse::<AppHash>().is_err(), "{bad}");
        }
    }
}
