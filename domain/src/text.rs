use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{Code, Encoding, InvalidSmsTemplate, Measure, SmsTemplate};

/// The name of a text: its purpose and its locale, in lower case: `login/de-at`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateKey {
    text: String,
    slash: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a text is purpose/locale: a-z, 0-9, - and _, then a language tag or {DEFAULT}"
)]
pub struct InvalidTemplateKey;

/// The texts of SMS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templates {
    default: SmsTemplate,
    texts: BTreeMap<TemplateKey, SmsTemplate>,
    options: TextOptions,
}

/// Lines that let a phone detect the code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// Adds the last line `@host #code`. Browsers on that host then fill in the code (`WebOTP`).
    pub webotp_host: Option<WebOtpHost>,
    /// Lets the Android app with this hash read the SMS (SMS Retriever).
    pub app_hash: Option<AppHash>,
}

/// A DNS name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOtpHost(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a DNS name of letters, digits, hyphens and dots")]
pub struct InvalidWebOtpHost;

/// Eleven characters, computed from the package and the signature of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppHash(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hash of an app is 11 characters of base64")]
pub struct InvalidAppHash;

/// The reason why a text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    #[error("{name:?}: {error}")]
    Key { name: String, error: InvalidTemplateKey },
    #[error("{name:?}: {error}")]
    Text { name: String, error: InvalidSmsTemplate },
}

/// A problem of a text, found with the longest code in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lint {
    #[error("{name}: takes {segments} SMS in {encoding}{costly}, and {max} are allowed")]
    TooLong { name: String, segments: usize, encoding: &'static str, costly: Costly, max: usize },
    #[error("{name}: is {bytes} bytes long, and Android passes an SMS of at most 140 to an app")]
    TooLongForApp { name: String, bytes: usize },
    #[error("{name}: contains a control character")]
    Control { name: String },
    #[error("{name}: contains only the code")]
    Bare { name: String },
}

/// The character that makes a text UCS-2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costly(Option<char>);

/// The purpose of requests that name none, and the locale of texts for every other locale.
const DEFAULT: &str = "default";

/// The longest SMS that Android's SMS Retriever reads.
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
    /// Uses one text for everything.
    pub fn new(default: SmsTemplate) -> Self {
        Self { default, texts: BTreeMap::new(), options: TextOptions::default() }
    }

    /// Adds a text for a purpose and a locale. Purpose `default` is for requests that name none;
    /// locale `default` is for every locale without its own text.
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

    /// Finds the name of the text for a purpose and a locale. `None` stands for the default text.
    ///
    /// The order is: the whole locale, shorter forms of it, locale `default`; first for the purpose,
    /// then for purpose `default`. An unknown or missing locale uses locale `default`.
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

    /// Renders an SMS. If the text `key` does not exist in this process, because another process has
    /// other texts, the text that [`Templates::resolve`] finds instead is used.
    pub fn render(&self, key: Option<&TemplateKey>, code: &Code) -> String {
        let known = key.and_then(|key| self.resolve(Some(key.purpose()), Some(key.locale())));
        let template = known.and_then(|key| self.texts.get(&key)).unwrap_or(&self.default);
        self.complete(template, code)
    }

    /// Returns the problems of all texts. A text may take `max_segments` SMS.
    pub fn lint(&self, max_segments: usize) -> Vec<Lint> {
        let named = self.texts.iter().map(|(key, template)| (key.as_str(), template));
        std::iter::once(("SMS_TEMPLATE", &self.default))
            .chain(named)
            .flat_map(|(name, template)| self.lint_one(name, template, max_segments))
            .collect()
    }

    /// Returns the name and the measure of each text, with the longest code in it.
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

    /// Renders a text and adds the optional lines. The line for browsers must be the last.
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
mod tests;
