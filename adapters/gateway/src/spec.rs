//! The description of each provider: its name and its settings.

use crate::{fields::Fields, provider::Provider, providers::PROVIDERS};

/// A provider, as settings and documents know it.
pub struct ProviderSpec {
    /// The word of `provider` in the configuration, and the prefix of its names in the environment.
    pub name: &'static str,
    /// The name that the vendor uses.
    pub title: &'static str,
    /// Whether a route may give the sender.
    pub sender: bool,
    /// The keys of a route's `params` that the provider reads. A `*` at the end stands for any
    /// characters.
    pub params: &'static [&'static str],
    /// The settings that only this provider has.
    pub fields: &'static [Field],
    /// Makes the provider. `None` means that a problem was noted.
    pub(crate) make: fn(&mut Fields<'_>) -> Option<Box<dyn Provider>>,
}

/// A setting of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub kind: FieldKind,
    pub required: bool,
    /// Empty if there is none.
    pub default: &'static str,
    pub meaning: &'static str,
}

/// The kind of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    Text,
    Secret,
    /// A base URL, to which a path is added.
    Url,
    /// A whole URL, which may contain a user, a password and a query.
    Address,
    Number(u64, u64),
    Seconds(u64, u64),
    Boolean,
    OneOf(&'static [&'static str]),
    /// A table of texts.
    Table,
    /// A table or a list of any structure.
    Any,
}

impl ProviderSpec {
    /// Returns the provider of this name.
    pub fn of(name: &str) -> Option<&'static Self> {
        PROVIDERS.iter().copied().find(|spec| spec.name == name)
    }
}

impl Field {
    pub const fn required(name: &'static str, kind: FieldKind, meaning: &'static str) -> Self {
        Self { name, kind, required: true, default: "", meaning }
    }

    pub const fn optional(name: &'static str, kind: FieldKind, meaning: &'static str) -> Self {
        Self { name, kind, required: false, default: "", meaning }
    }

    pub const fn with_default(
        name: &'static str,
        kind: FieldKind,
        default: &'static str,
        meaning: &'static str,
    ) -> Self {
        Self { name, kind, required: false, default, meaning }
    }
}

impl FieldKind {
    /// Returns what a value must be: `must be …`.
    pub fn rule(self) -> String {
        match self {
            Self::Text | Self::Secret => "a text without control characters".to_owned(),
            Self::Url => "a URL that begins with http:// or https:// and a host, without \
                          credentials and query"
                .to_owned(),
            Self::Address => "a URL that begins with http:// or https:// and a host".to_owned(),
            Self::Number(min, max) => format!("a whole number from {min} to {max}"),
            Self::Seconds(min, max) => format!("whole seconds from {min} to {max}"),
            Self::Boolean => "true or false".to_owned(),
            Self::OneOf(words) => format!("one of: {}", words.join(", ")),
            Self::Table => "a table of texts".to_owned(),
            Self::Any => "a table or a list, or a text with one as JSON".to_owned(),
        }
    }
}

impl std::fmt::Debug for ProviderSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_providers_are_unique_and_their_fields_are_words() {
        for (at, spec) in PROVIDERS.iter().enumerate() {
            assert!(PROVIDERS[at + 1..].iter().all(|it| it.name != spec.name), "{}", spec.name);
            for field in spec.fields {
                let is_word = field
                    .name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
                assert!(is_word && !field.meaning.is_empty(), "{}.{}", spec.name, field.name);
                assert!(
                    !field.required || field.default.is_empty(),
                    "{}.{}",
                    spec.name,
                    field.name
                );
            }
            assert_eq!(ProviderSpec::of(spec.name).map(|it| it.title), Some(spec.title));
        }
    }
}
