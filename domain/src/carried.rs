use std::{borrow::Cow, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};

use crate::{Code, InvalidKeys, KeyId, MessageId, PhoneNumber, TemplateKey, secret::parse_keys};

/// A code on its way from the request to the gateway, in clear text or sealed.
///
/// As text it is `482915`, `482915;login/de` if the request named a template, or
/// `s1.<key id>.<base64url>` if it is sealed.
#[derive(Clone, PartialEq, Eq)]
pub enum CarriedCode {
    Clear {
        code: Code,
        /// `None` stands for the default template.
        template: Option<TemplateKey>,
    },
    Sealed(SealedCode),
}

/// A sealed code. Only [`PayloadKeys`] with the same key open it, and only for the same message.
///
/// It contains the phone, the code and the template, encrypted with XChaCha20-Poly1305 under a
/// random nonce of 24 bytes. The id of the message is the associated data.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedCode(String);

/// The reason why a text is not a carried code. The error does not contain the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither a code in clear text nor a sealed code")]
pub struct InvalidCarriedCode;

/// The keys in use. The first seals; all of them open.
#[derive(Clone)]
pub struct PayloadKeys(Vec<PayloadKey>);

/// The content of a sealed code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub phone: PhoneNumber,
    pub code: Code,
    pub template: Option<TemplateKey>,
}

/// The reason why a sealed code cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotOpen {
    #[error("sealed with a key that is not set here")]
    UnknownKey,
    #[error("sealed for another message, or damaged")]
    Damaged,
}

#[derive(Clone)]
struct PayloadKey {
    id: KeyId,
    cipher: XChaCha20Poly1305,
}

const VERSION: &str = "s1.";
const NONCE: usize = 24;

impl CarriedCode {
    pub fn as_text(&self) -> Cow<'_, str> {
        match self {
            Self::Clear { code, template: None } => code.as_str().into(),
            Self::Clear { code, template: Some(template) } => {
                format!("{};{}", code.as_str(), template.as_str()).into()
            }
            Self::Sealed(sealed) => sealed.as_str().into(),
        }
    }
}

impl From<Code> for CarriedCode {
    fn from(code: Code) -> Self {
        Self::Clear { code, template: None }
    }
}

impl FromStr for CarriedCode {
    type Err = InvalidCarriedCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(sealed) = text.parse() {
            return Ok(Self::Sealed(sealed));
        }
        let (code, template) = match text.split_once(';') {
            Some((code, template)) => (code, Some(template.parse())),
            None => (text, None),
        };
        Ok(Self::Clear {
            code: code.parse().map_err(|_| InvalidCarriedCode)?,
            template: template.transpose().map_err(|_| InvalidCarriedCode)?,
        })
    }
}

impl fmt::Debug for CarriedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clear { .. } => "CarriedCode(clear …)",
            Self::Sealed(_) => "CarriedCode(sealed …)",
        })
    }
}

impl SealedCode {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> Option<(KeyId, &str)> {
        let (id, sealed) = self.0.strip_prefix(VERSION)?.split_once('.')?;
        Some((id.parse().ok()?, sealed))
    }
}

impl FromStr for SealedCode {
    type Err = InvalidCarriedCode;

    /// Checks the form only. [`PayloadKeys::open`] checks the content.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let sealed = Self(text.to_owned());
        let is_base64url = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        let fits = sealed.parts().is_some_and(|(_, sealed)| is_base64url(sealed));
        if fits { Ok(sealed) } else { Err(InvalidCarriedCode) }
    }
}

impl fmt::Debug for SealedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealedCode(…)")
    }
}

impl PayloadKeys {
    /// Seals a code with the first key.
    ///
    /// `nonce` must be random. Two texts that are sealed with the same key and nonce can both be
    /// recovered.
    pub fn seal(
        &self,
        message: MessageId,
        phone: &PhoneNumber,
        code: &Code,
        template: Option<&TemplateKey>,
        nonce: [u8; NONCE],
    ) -> CarriedCode {
        let PayloadKey { id, cipher } = &self.0[0];
        let template = template.map_or("", TemplateKey::as_str);
        let text = format!("{};{};{template}", phone.as_str(), code.as_str());
        let id_bytes = message.as_uuid().into_bytes();
        let payload = Payload { msg: text.as_bytes(), aad: &id_bytes };
        let sealed = cipher.encrypt((&nonce).into(), payload).expect("a short text fits");
        let bytes = URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat());
        CarriedCode::Sealed(SealedCode(format!("{VERSION}{}.{bytes}", id.as_str())))
    }

    /// Opens a code that was sealed for `message`.
    pub fn open(&self, message: MessageId, sealed: &SealedCode) -> Result<Opened, CannotOpen> {
        let (id, bytes) = sealed.parts().ok_or(CannotOpen::Damaged)?;
        let key = self.0.iter().find(|key| key.id == id).ok_or(CannotOpen::UnknownKey)?;
        let text = key.open(message, bytes).ok_or(CannotOpen::Damaged)?;
        read(&text).ok_or(CannotOpen::Damaged)
    }
}

impl FromStr for PayloadKeys {
    type Err = InvalidKeys;

    /// Parses a comma-separated list of `id:base64`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = |(id, key): (KeyId, [u8; 32])| PayloadKey {
            id,
            cipher: XChaCha20Poly1305::new((&key).into()),
        };
        Ok(Self(parse_keys(text)?.into_iter().map(key).collect()))
    }
}

/// Shows only the ids of the keys.
impl fmt::Debug for PayloadKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

impl PayloadKey {
    fn open(&self, message: MessageId, bytes: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(bytes).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE>()?;
        let id_bytes = message.as_uuid().into_bytes();
        let payload = Payload { msg: sealed, aad: &id_bytes };
        String::from_utf8(self.cipher.decrypt(nonce.into(), payload).ok()?).ok()
    }
}

fn read(text: &str) -> Option<Opened> {
    let mut fields = text.splitn(3, ';');
    let mut next = || fields.next();
    let (phone, code, template) = (next()?.parse().ok()?, next()?.parse().ok()?, next()?);
    let template = if template.is_empty() { None } else { Some(template.parse().ok()?) };
    Some(Opened { phone, code, template })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: &str = "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const SECOND: &str = "k2:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

    fn keys(text: &str) -> PayloadKeys {
        text.parse().unwrap()
    }

    fn message(number: i64) -> MessageId {
        MessageId::of_record("t", 0, number, 0)
    }

    fn content() -> Opened {
        Opened {
            phone: "79991234567".parse().unwrap(),
            code: "048291".parse().unwrap(),
            template: "login/de".parse().ok(),
        }
    }

    fn seal(keys: &PayloadKeys, content: &Opened) -> SealedCode {
        let Opened { phone, code, template } = content;
        let carried = keys.seal(message(1), phone, code, template.as_ref(), [9; 24]);
        let CarriedCode::Sealed(sealed) = carried else { panic!("not sealed") };
        sealed
    }

    #[test]
    fn a_sealed_code_opens_only_for_its_message() {
        let sealed = seal(&keys(FIRST), &content());

        assert_eq!(keys(FIRST).open(message(1), &sealed), Ok(content()));
        assert_eq!(keys(FIRST).open(message(2), &sealed), Err(CannotOpen::Damaged));
    }

    #[test]
    fn a_code_with_the_default_template_can_be_sealed() {
        let content = Opened { template: None, ..content() };

        let sealed = seal(&keys(FIRST), &content);

        assert_eq!(keys(FIRST).open(message(1), &sealed), Ok(content));
    }

    #[test]
    fn the_first_key_seals_and_all_keys_open() {
        let old = seal(&keys(FIRST), &content());
        let rotated = keys(&format!("{SECOND},{FIRST}"));

        assert_eq!(rotated.open(message(1), &old), Ok(content()));
        let new = seal(&rotated, &content());
        assert!(new.as_str().starts_with("s1.k2."), "{}", new.as_str());
        assert_eq!(keys(FIRST).open(message(1), &new), Err(CannotOpen::UnknownKey));
    }

    #[test]
    fn another_key_with_the_same_id_does_not_open() {
        let sealed = seal(&keys(FIRST), &content());
        let impostor = keys(&SECOND.replace("k2", "k1"));

        assert_eq!(impostor.open(message(1), &sealed), Err(CannotOpen::Damaged));
    }

    #[test]
    fn a_change_of_any_byte_is_detected() {
        let sealed = seal(&keys(FIRST), &content());
        let text = sealed.as_str();

        for place in "s1.k1.".len()..text.len() {
            let other = if text.as_bytes()[place] == b'A' { "B" } else { "A" };
            let changed = [&text[..place], other, &text[place + 1..]].concat();
            let changed: SealedCode = changed.parse().unwrap();
            assert_eq!(keys(FIRST).open(message(1), &changed), Err(CannotOpen::Damaged), "{place}");
        }
    }

    #[test]
    fn a_sealed_code_hides_phone_and_code_and_differs_each_time() {
        let Opened { phone, code, template } = content();
        let with = |nonce| keys(FIRST).seal(message(1), &phone, &code, template.as_ref(), nonce);

        let (one, other) = (with([1; 24]), with([2; 24]));

        assert_ne!(one, other);
        for text in [one.as_text(), other.as_text()] {
            assert!(!text.contains("79991234567") && !text.contains("048291"), "{text}");
        }
    }

    #[test]
    fn a_carried_code_parses_from_its_text() {
        let sealed = CarriedCode::Sealed(seal(&keys(FIRST), &content()));
        let sealed_text = sealed.as_text().into_owned();
        for (text, template) in
            [("482915", None), ("0042;login/de", Some("login/de")), (sealed_text.as_str(), None)]
        {
            let carried: CarriedCode = text.parse().unwrap();
            assert_eq!(carried.as_text(), text);
            if let CarriedCode::Clear { template: found, .. } = carried {
                assert_eq!(found.as_ref().map(TemplateKey::as_str), template);
            }
        }
    }

    #[test]
    fn other_texts_are_not_carried_codes() {
        for text in [
            "",
            "12",
            "12345a",
            "482915;",
            "482915;login",
            "482915;login/de;",
            ";login/de",
            "s1.",
            "s1.k1",
            "s1..AAAA",
            "s1.k 1.AAAA",
            "s1.k1.AA=",
            "s1.k1.AA+A",
            "s2.k1.AAAA",
        ] {
            assert_eq!(text.parse::<CarriedCode>(), Err(InvalidCarriedCode), "{text}");
        }
    }

    #[test]
    fn debug_hides_codes_and_keys() {
        let sealed = seal(&keys(FIRST), &content());
        let clear = CarriedCode::from(content().code);

        let shown = format!(
            "{sealed:?} {:?} {clear:?} {:?} {:?}",
            CarriedCode::Sealed(sealed.clone()),
            keys(FIRST),
            content()
        );

        assert!(shown.contains("k1"), "{shown}");
        for hidden in [&sealed.as_str()[6..], "048291", "79991234567", "AAEC"] {
            assert!(!shown.contains(hidden), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC*|[s1k.;0-9A-Za-z/_-]{0,60}") {
            if let Ok(carried) = text.parse::<CarriedCode>() {
                if let CarriedCode::Sealed(sealed) = &carried {
                    prop_assert!(keys(FIRST).open(message(1), sealed).is_err());
                }
                prop_assert_eq!(carried.as_text().to_ascii_lowercase(), text.to_ascii_lowercase());
            }
        }
    }
}
