//! The form in which a setting is declared.

use std::fmt::Write;

use super::gateways;

/// Settings that belong together, in the order of the documents.
#[derive(Debug)]
pub struct Section {
    pub title: &'static str,
    pub settings: &'static [Setting],
}

/// The declaration of a setting.
///
/// This is the only place that has its name, its default, its range and its meaning. The reader,
/// `.env.example` and `docs/settings.md` take them from here.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    /// The value that applies if the operator sets none: in words if it depends on something, empty
    /// if there is none.
    pub default: &'static str,
    /// A value that `.env.example` shows in a comment. `None`: the file sets the default, which
    /// changes nothing.
    pub example: Option<&'static str>,
    pub values: Values,
    /// Sentences in Markdown. `.env.example` has the first of them.
    pub meaning: &'static str,
}

/// The values that a setting may have.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// A whole number within these bounds.
    Number(u32, u32),
    /// Seconds within these bounds.
    Seconds(u32, u32),
    /// Days within these bounds.
    Days(u32, u32),
    OneOf(&'static [&'static str]),
    Port,
    /// A provider of SMS.
    Provider,
    /// `http://` or `https://`. Only its host is shown: passwords and tokens stand before and
    /// behind it.
    Url,
    /// In words. The value is never shown.
    Secret(&'static str),
    /// In words.
    Text(&'static str),
}

impl Section {
    /// Every section, in the order of the documents.
    pub const ALL: &'static [&'static Self] = &[
        &super::api::SECTION,
        &super::verification::SECTION,
        &super::codes::SECTION,
        &super::limits::SECTION,
        &super::numbers::SECTION,
        &super::guard::SECTION,
        &super::events::SECTION,
        &super::texts::SECTION,
        &super::gateway::SECTION,
        &super::database::SECTION,
        &super::relay::SECTION,
        &super::consumer::SECTION,
        &super::kafka::SECTION,
        &super::process::SECTION,
        &super::traces::SECTION,
    ];
}

impl Setting {
    /// Every setting, in the order of the documents.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        Section::ALL.iter().flat_map(|section| section.settings)
    }

    pub(super) fn of(name: &str) -> &'static Self {
        Self::all()
            .find(|setting| setting.name == name)
            .expect("a setting is declared if it is read")
    }
}

impl Values {
    /// What a value must be, for the report of a bad one.
    pub(super) fn rule(self) -> String {
        match self {
            Self::Number(min, max) | Self::Days(min, max) => {
                format!("a whole number from {min} to {max}")
            }
            Self::Seconds(min, max) => format!("seconds, a whole number from {min} to {max}"),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
            Self::Port => "a port, a whole number from 1 to 65535".to_owned(),
            Self::Provider => format!("one of {}", gateways::words().join(", ")),
            Self::Url => "an http:// or https:// URL".to_owned(),
            Self::Secret(words) | Self::Text(words) => words.to_owned(),
        }
    }

    fn markdown(self) -> String {
        match self {
            Self::Number(min, max) => format!("{min}–{max}"),
            Self::Seconds(min, max) => format!("{min}–{max} seconds"),
            Self::Days(min, max) => format!("{min}–{max} days"),
            Self::OneOf(words) => format!("`{}`", words.join("`, `")),
            Self::Port => "1–65535".to_owned(),
            Self::Provider => format!("`{}`", gateways::words().join("`, `")),
            Self::Url => "`http://` or `https://` URL".to_owned(),
            Self::Secret(words) | Self::Text(words) => words.replace('*', "`*`"),
        }
    }
}

/// The tables of `docs/settings.md`.
pub fn markdown() -> String {
    let mut text = String::new();
    for section in Section::ALL {
        let _ = writeln!(text, "\n### {}\n\n| name | default | values | meaning |", section.title);
        text.push_str("|---|---|---|---|\n");
        for Setting { name, default, values, meaning, .. } in section.settings {
            let default = match *default {
                "" => "unset".to_owned(),
                words if matches!(values, Values::Secret(_)) => words.to_owned(),
                words if words.contains(' ') && !words.contains('{') => words.to_owned(),
                value => format!("`{value}`"),
            };
            let _ = writeln!(text, "| `{name}` | {default} | {} | {meaning} |", values.markdown());
        }
        if section.title == super::gateway::SECTION.title {
            providers_markdown(&mut text);
        }
    }
    text
}

/// Adds the settings of the providers. `docs/gateways.md` says what they mean.
fn providers_markdown(text: &mut String) {
    text.push_str(
        "\nEach provider has its own settings, which [Gateways](gateways.md) explains. **Bold** ones \
         are required. In a file of gateways they are named without the prefix, in small letters.\n\n\
         | `GATEWAY` | settings |\n|---|---|\n",
    );
    for (provider, fields) in gateways::variables() {
        let names = fields.iter().map(|(field, name)| {
            if field.required { format!("**`{name}`**") } else { format!("`{name}`") }
        });
        let names = names.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| `{}` ({}) | {names} |", provider.name, provider.title);
    }
}

/// The file `.env.example`.
pub fn example() -> String {
    let mut text = "\
# Every setting. Copy this file to .env, or set what you need in the environment, which wins.
# A line that is commented out shows an example: that setting has no default, or one that
# depends on something. A secret NAME may be in a file instead, whose path is NAME_FILE.
# `make settings` writes this file; docs/settings.md has the whole text.
"
    .to_owned();
    for section in Section::ALL {
        let _ = writeln!(text, "\n# --- {} ---", section.title);
        for setting in section.settings {
            text.push('\n');
            let mut summary = first_sentence(&without_links(setting.meaning)).replace('`', "");
            if let Values::OneOf(words) = setting.values {
                let _ = write!(summary, " Values: {}.", words.join(", "));
            }
            comment(&mut text, &summary);
            let (mark, value) = setting.example.map_or(("", setting.default), |it| ("# ", it));
            let quote = if value.contains(' ') { "\"" } else { "" };
            let _ = writeln!(text, "{mark}{}={quote}{value}{quote}", setting.name);
        }
        if section.title == super::gateway::SECTION.title {
            providers_example(&mut text);
        }
    }
    text
}

/// Adds the settings of the providers, all of them commented out.
fn providers_example(text: &mut String) {
    text.push_str("\n# The settings of the providers; docs/gateways.md says what they mean.\n#\n");
    for (provider, fields) in gateways::variables() {
        let names: Vec<String> = fields.into_iter().map(|(_, name)| name).collect();
        comment(text, &format!("{}: {}", provider.name, names.join(", ")));
    }
}

/// Leaves only the text of Markdown links.
fn without_links(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, link)) = rest.split_once('[') {
        let (words, link) = link.split_once("](").expect("a link has a target");
        let (_, after) = link.split_once(')').expect("a link ends");
        plain.extend([before, words]);
        rest = after;
    }
    plain + rest
}

fn first_sentence(text: &str) -> &str {
    text.find(". ").map_or(text, |end| &text[..=end])
}

/// Adds lines of at most 100 characters.
fn comment(text: &mut String, words: &str) {
    let mut line = "#".to_owned();
    for word in words.split(' ') {
        if line.len() + 1 + word.len() > 100 {
            text.push_str(&line);
            text.push('\n');
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}
