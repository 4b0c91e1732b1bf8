use std::{collections::HashSet, fmt, str::FromStr};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit, Mac};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

use crate::{Code, CodeLength, GatewayName, VerificationId};

/// The id of a key: 1 to 16 letters, digits, `_` and `-`. It is stored with everything that the key
/// made, to show which key is needed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a key has 1 to 16 letters, digits, _ and -")]
pub struct InvalidKeyId;

/// The reason why a text is not a list of keys. The error does not contain the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    #[error("1 to 4 comma-separated keys, each id:base64 of 32 bytes")]
    Form,
    #[error("two keys have the same id")]
    SameId,
}

/// The secret that derives codes and makes their hashes.
///
/// An attacker needs both a pepper and the database to learn the pending codes. Either alone reveals
/// no code.
#[derive(Clone)]
pub struct Pepper {
    id: KeyId,
    key: [u8; 32],
}

/// The peppers in use. The first makes new codes; codes of all of them are accepted.
#[derive(Debug, Clone)]
pub struct Peppers(Vec<Pepper>);

/// Random bytes from which a pepper derives the code of a verification, together with its id.
///
/// Ids are public, so without a seed the pepper alone would reveal every code.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed([u8; 16]);

/// The stored hash of a code that can still be checked.
///
/// It has no `==`: a process hashes the code that a caller tries, and the database compares it with
/// the stored hash.
#[derive(Clone)]
pub struct CodeHash([u8; 32]);

/// The bytes of a receipt token.
const RECEIPT_TOKEN: usize = 16;

/// The purpose of a MAC. Each purpose makes a pepper a different function.
#[repr(u8)]
enum Purpose {
    Hash = 1,
    Derive = 2,
    Body = 3,
    Receipt = 4,
}

impl KeyId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=16).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidKeyId) }
    }
}

impl Pepper {
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Derives the code of a verification. Each of the `10^length` codes is equally likely.
    ///
    /// The same arguments always give the same code, so a resend needs no stored code.
    pub fn derive(&self, id: VerificationId, seed: &Seed, length: CodeLength) -> Code {
        // As in `Code::generate`, bytes above 249 are discarded. A block gives 31 digits on average,
        // so a second block is almost never needed.
        let id = id.as_uuid();
        let blocks = (0_u32..).map(|counter| {
            let parts = [id.as_bytes().as_slice(), &seed.0, &counter.to_be_bytes()];
            <[u8; 32]>::from(self.mac(Purpose::Derive, &parts).finalize().into_bytes())
        });
        let digits = blocks.flatten().filter(|byte| *byte < 250).map(|byte| byte % 10);
        Code::from_digits(digits.take(length.get()))
    }

    /// Hashes the code of a verification.
    pub fn hash(&self, id: VerificationId, code: &Code) -> CodeHash {
        let mac = self.mac(Purpose::Hash, &[id.as_uuid().as_bytes(), code.as_str().as_bytes()]);
        CodeHash(mac.finalize().into_bytes().into())
    }

    /// Hashes the body of a request, to recognise a repeat. The body of a check contains a code, and a
    /// hash without a key would reveal it to anyone who tries all codes.
    pub fn body_hash(&self, body: &[u8]) -> [u8; 32] {
        self.mac(Purpose::Body, &[body]).finalize().into_bytes().into()
    }

    /// Returns the token that proves that a receipt comes from the provider of `gateway`: 128 bits as 22
    /// characters of base64url, because some providers limit the length of a URL. The provider learns it
    /// from the URL that it is given.
    pub fn receipt_token(&self, gateway: &GatewayName) -> String {
        let mac = self.mac(Purpose::Receipt, &[gateway.as_str().as_bytes()]);
        URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..RECEIPT_TOKEN])
    }

    /// All parts except the last have a fixed length, so different lists of parts give different
    /// inputs.
    fn mac(&self, purpose: Purpose, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = keyed(&self.key);
        mac.update(&[purpose as u8]);
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

/// Shows only the id.
impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pepper({})", self.id.0)
    }
}

impl Peppers {
    pub fn first(&self) -> &Pepper {
        &self.0[0]
    }

    pub fn get(&self, id: &KeyId) -> Option<&Pepper> {
        self.0.iter().find(|pepper| pepper.id == *id)
    }

    /// Hashes `code` with each pepper, as a code of verification `id`.
    pub fn hashes(&self, id: VerificationId, code: &Code) -> Vec<(KeyId, CodeHash)> {
        self.0.iter().map(|pepper| (pepper.id.clone(), pepper.hash(id, code))).collect()
    }

    /// Whether `token` is the [`receipt_token`](Pepper::receipt_token) of `gateway` under one of the
    /// peppers. Compares in constant time.
    pub fn accept_receipt_token(&self, gateway: &GatewayName, token: &str) -> bool {
        let token = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        // A shorter one would be compared with the beginning only.
        if token.len() != RECEIPT_TOKEN {
            return false;
        }
        let gateway = gateway.as_str().as_bytes();
        let is_right = |pepper: &Pepper| {
            pepper.mac(Purpose::Receipt, &[gateway]).verify_truncated_left(&token).is_ok()
        };
        self.0.iter().any(is_right)
    }
}

impl FromStr for Peppers {
    type Err = InvalidKeys;

    /// Parses a comma-separated list of `id:base64`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let keys = parse_keys(text)?;
        Ok(Self(keys.into_iter().map(|(id, key)| Pepper { id, key }).collect()))
    }
}

impl Seed {
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

impl CodeHash {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for CodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeHash(…)")
    }
}

/// Draws a new key with a new id, in the form that [`Peppers`] and [`crate::PayloadKeys`] parse.
pub fn draw_key(rng: &mut impl CryptoRng) -> String {
    let mut name = [0; 4];
    let mut key = [0; 32];
    rng.fill_bytes(&mut name);
    rng.fill_bytes(&mut key);
    format!("d{:08x}:{}", u32::from_be_bytes(name), STANDARD.encode(key))
}

/// Returns the SHA-256 of `parts`. Each part is hashed with its length, so different lists of parts
/// give different inputs.
pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

pub(crate) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

pub(crate) fn parse_keys(text: &str) -> Result<Vec<(KeyId, [u8; 32])>, InvalidKeys> {
    let key = |text: &str| {
        let (id, key) = text.trim().split_once(':')?;
        Some((id.parse().ok()?, STANDARD.decode(key).ok()?.try_into().ok()?))
    };
    let keys: Option<Vec<(KeyId, [u8; 32])>> = text.split(',').map(key).collect();
    let keys = keys.filter(|keys| keys.len() <= 4).ok_or(InvalidKeys::Form)?;
    let ids: HashSet<&KeyId> = keys.iter().map(|(id, _)| id).collect();
    if ids.len() == keys.len() { Ok(keys) } else { Err(InvalidKeys::SameId) }
}

#[cfg(test)]
mod tests;
