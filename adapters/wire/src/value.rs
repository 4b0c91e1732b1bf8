//! The value of a record: JSON, which is parsed as Go's `encoding/json` parses it.

use std::fmt;

use application::ports::Unreadable;
use domain::{CarriedCode, Message, TemplateKey};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

/// The longest value that is parsed. Values of ours have some 40 bytes.
pub const MAX_VALUE_LENGTH: usize = 64 * 1024;

pub(crate) const LACKING: Unreadable = Unreadable("the value lacks a phone or a code as text");

/// The members of a value that a message is made of.
#[derive(Default)]
pub(crate) struct Data {
    pub(crate) phone: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) template: Option<String>,
    pub(crate) sealed: Option<String>,
}

/// A value as it is written.
#[derive(Serialize)]
#[serde(untagged)]
enum Written<'a> {
    /// As the Go predecessor writes it.
    Clear {
        phone: &'a str,
        code: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        template: Option<&'a str>,
    },
    Sealed {
        sealed: &'a str,
    },
}

/// Writes the value of a message.
pub(crate) fn write(message: &Message) -> Vec<u8> {
    let data = match &message.code {
        CarriedCode::Clear { code, template } => Written::Clear {
            phone: message.phone.as_str(),
            code: code.as_str(),
            template: template.as_ref().map(TemplateKey::as_str),
        },
        CarriedCode::Sealed(sealed) => Written::Sealed { sealed: sealed.as_str() },
    };
    serde_json::to_vec(&data).expect("texts are always JSON")
}

/// Parses a value.
pub(crate) fn parse(value: &[u8]) -> Result<Data, Unreadable> {
    if value.len() > MAX_VALUE_LENGTH {
        return Err(Unreadable("the value is too large"));
    }
    let read = |with_ours| {
        let mut json = serde_json::Deserializer::from_slice(value);
        let data = DataReader { with_ours }.deserialize(&mut json)?;
        json.end()?;
        Ok(data)
    };
    // A member that the predecessor ignores may hold JSON that serde cannot represent.
    read(true).or_else(|_| read(false)).map_err(|error: serde_json::Error| {
        if error.is_data() { LACKING } else { Unreadable("the value is not JSON") }
    })
}

/// Reads [`Data`] as Go's `encoding/json` reads the predecessor's struct.
///
/// `phone` and `code` may be in any case, and the last of several wins. `null` counts as absent.
/// Bytes that are not UTF-8 are replaced. Any other type is an error.
#[derive(Clone, Copy)]
struct DataReader {
    /// Whether to read `template` and `sealed`, which the predecessor ignores. Their names are
    /// exact. A member of another type belongs to another producer and is ignored.
    with_ours: bool,
}

enum Name {
    Phone,
    Code,
    Template,
    Sealed,
    Other,
}

/// A JSON text with any bytes and any surrogates.
struct GoText(String);

impl<'de> DeserializeSeed<'de> for DataReader {
    type Value = Data;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Data, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for DataReader {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
        let mut data = Data::default();
        let text = |value| if let Value::String(text) = value { Some(text) } else { None };
        while let Some(name) = map.next_key()? {
            match name {
                Name::Phone => {
                    data.phone = map.next_value::<Option<GoText>>()?.map(|it| it.0).or(data.phone);
                }
                Name::Code => {
                    data.code = map.next_value::<Option<GoText>>()?.map(|it| it.0).or(data.code);
                }
                Name::Template if self.with_ours => data.template = text(map.next_value()?),
                Name::Sealed if self.with_ours => data.sealed = text(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(data)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E: de::Error>(self, name: &[u8]) -> Result<Name, E> {
                Ok(match name {
                    b"template" => Name::Template,
                    b"sealed" => Name::Sealed,
                    name if name.eq_ignore_ascii_case(b"phone") => Name::Phone,
                    name if name.eq_ignore_ascii_case(b"code") => Name::Code,
                    _ => Name::Other,
                })
            }
        }

        // As bytes: a name that is not UTF-8 is another name.
        deserializer.deserialize_bytes(NameVisitor)
    }
}

impl<'de> Deserialize<'de> for GoText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl Visitor<'_> for TextVisitor {
            type Value = GoText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_bytes<E: de::Error>(self, text: &[u8]) -> Result<GoText, E> {
                Ok(GoText(String::from_utf8_lossy(text).into_owned()))
            }
        }

        deserializer.deserialize_bytes(TextVisitor)
    }
}
