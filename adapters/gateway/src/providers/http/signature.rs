//! Signatures with a shared key (HMAC), of requests and of receipts.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use http::HeaderName;
use ring::hmac;

use super::{
    settings::Table,
    template::{Broken, Mode, Template, Templates},
};
use crate::{
    fields::Secret,
    signing::{self, hex, hex_decoded},
};

/// A signature in a header.
pub(super) struct Signature {
    pub(super) header: HeaderName,
    prefix: String,
    algorithm: hmac::Algorithm,
    encoding: Encoding,
    /// The template of the text that is signed.
    pub(super) sign: Template,
    key: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Hex,
    UpperHex,
    Base64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyForm {
    Text,
    Base64,
    Hex,
}

pub(super) const KEYS: &[&str] =
    &["header", "prefix", "algorithm", "encoding", "sign", "key_encoding"];

impl Signature {
    /// Reads a signature. `names` are the variables that `sign` may use, and `secret` is the field
    /// that has the key.
    pub(super) fn read(
        table: &mut Table<'_, '_, '_>,
        templates: &mut Templates,
        names: &[&str],
        key: Option<&Secret>,
        secret: &str,
    ) -> Option<Self> {
        let header = table.required("header");
        let parsed = header.as_ref().and_then(|it| it.parse::<HeaderName>().ok());
        if header.is_some() && parsed.is_none() {
            table.problem("header", "must be the name of a header");
        }
        let prefix = table.text("prefix").unwrap_or_default();
        if prefix.chars().any(char::is_control) {
            table.problem("prefix", "must be a text without control characters");
        }
        let algorithm = table.word(
            "algorithm",
            &[
                ("sha256", hmac::HMAC_SHA256),
                ("sha512", hmac::HMAC_SHA512),
                ("sha1", hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
            ],
        );
        let encoding = table.word(
            "encoding",
            &[("hex", Encoding::Hex), ("HEX", Encoding::UpperHex), ("base64", Encoding::Base64)],
        );
        let form = table.word(
            "key_encoding",
            &[("text", KeyForm::Text), ("base64", KeyForm::Base64), ("hex", KeyForm::Hex)],
        );
        let sign = template(table, templates, names);
        if key.is_none() {
            table.problem("header", &format!("needs the field {secret}, which has the key"));
        }
        let bytes = key.map(|key| form.bytes(key.expose()));
        if bytes == Some(None) {
            table.problem("key_encoding", &format!("does not fit: {secret} is not encoded so"));
        }
        let key = bytes.flatten()?;
        Some(Self { header: parsed?, prefix, algorithm, encoding, sign: sign?, key })
    }

    /// Returns the value of the header.
    pub(super) fn make(
        &self,
        templates: &Templates,
        variables: &minijinja::Value,
    ) -> Result<String, Broken> {
        let signed = templates.render(&self.sign, variables)?;
        let tag = signing::hmac(self.algorithm, &self.key, &[signed.as_bytes()]);
        let tag = match self.encoding {
            Encoding::Hex => hex(tag.as_ref()),
            Encoding::UpperHex => hex(tag.as_ref()).to_uppercase(),
            Encoding::Base64 => STANDARD.encode(tag),
        };
        Ok(format!("{}{tag}", self.prefix))
    }

    /// Whether `value` is the signature. The comparison takes constant time.
    pub(super) fn is_good(
        &self,
        value: &str,
        templates: &Templates,
        variables: &minijinja::Value,
    ) -> bool {
        let Some(text) = value.strip_prefix(&self.prefix) else { return false };
        let tag = match self.encoding {
            Encoding::Hex | Encoding::UpperHex => hex_decoded(text.trim()),
            Encoding::Base64 => base64(text.trim()),
        };
        let Some(tag) = tag else { return false };
        let Ok(signed) = templates.render(&self.sign, variables) else { return false };
        signing::is_hmac(self.algorithm, &self.key, &[signed.as_bytes()], &tag)
    }
}

impl KeyForm {
    fn bytes(self, key: &str) -> Option<Vec<u8>> {
        match self {
            Self::Text => Some(key.as_bytes().to_vec()),
            Self::Base64 => base64(key),
            Self::Hex => hex_decoded(key),
        }
    }
}

/// Hides the key.
impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signature").field("header", &self.header).finish_non_exhaustive()
    }
}

fn template(
    table: &mut Table<'_, '_, '_>,
    templates: &mut Templates,
    names: &[&str],
) -> Option<Template> {
    let source = table.required("sign")?;
    let place = format!("{}.sign", table.place());
    let added = templates.add(Mode::Text, &place, &source, names);
    added.map_err(|problem| table.problem("sign", &problem)).ok()
}

/// Decodes either alphabet of base64, with or without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD]
        .iter()
        .find_map(|engine| engine.decode(text).ok())
}
