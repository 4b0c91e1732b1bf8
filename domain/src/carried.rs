use std::{borrow::Cow, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};

use crate::{Code, InvalidKeys, KeyId, MessageId, PhoneNumber, TemplateKey, secret::parse_keys};

/// A code on its way from the request to the gateway, in clear or sealed.
///
/// As text it is `482915`, `482915;login/de` with the template that was asked for, or
/// `s1.<key id>.<base64url>`.
#[derive(Clone, PartialEq, Eq)]
pub enum CarriedCode {
    Clear {
        code: Code,
        /// None: the default one.
        template: Option<TemplateKey>,
    },
    Sealed(SealedCode),
}

/// A code that only a [`PayloadKeys`] with the right key opens, and for its message only.
///
/// Inside are the phone, the code and the template, sealed with XChaCha20-Poly1305 under a random
/// nonce of 24 bytes; the id of the message is the associated data.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedCode(String);

/// Why a text is not a carried code. Says nothing of the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a code, in clear or sealed")]
pub struct InvalidCarriedCode;

/// Keys in use: the first seals, all open.
#[derive(Clone)]
pub struct PayloadKeys(Vec<PayloadKey>);

/// What was under a seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub phone: PhoneNumber,
    pub code: Code,
    pub template: Option<TemplateKey>,
}

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

    /// Looks at the form only: whether it can be opened is known when it is.
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
    /// Seals a code with the first key. `nonce` must be random: one that is used twice under one
    /// key gives both texts away.
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

    /// Opens what was sealed for `message`.
    pub fn open(&self, message: MessageId, sealed: &SealedCode) -> Result<Opened, CannotOpen> {
        let (id, bytes) = sealed.parts().ok_or(CannotOpen::Damaged)?;
        let key = self.0.iter().find(|key| key.id == id).ok_or(CannotOpen::UnknownKey)?;
        let text = key.open(message, bytes).ok_or(CannotOpen::Damaged)?;
        read(&text).ok_or(CannotOpen::Damaged)
    }
}

impl FromStr for PayloadKeys {
    type Err = InvalidKeys;

    /// Reads `id:base64`, several by comma.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = |(id, key): (KeyId, [u8; 32])| PayloadKey {
            id,
            cipher: XChaCha20Poly1305::new((&key).into()),
        };
        Ok(Self(parse_keys(text)?.into_iter().map(key).collect()))
    }
}

/// Shows the names only.
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
