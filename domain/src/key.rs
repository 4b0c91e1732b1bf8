use std::{collections::BTreeSet, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::Mac;
use rand_core::CryptoRng;
use uuid::Uuid;

use crate::{UnknownWord, secret::keyed};

/// The id of an API key. Not secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApiKeyId(Uuid);

/// An API key as its owner presents it: `msk_<32 hexadecimal digits>_<43 of base64url>`.
#[derive(Clone)]
pub struct ApiKeyText {
    id: ApiKeyId,
    secret: [u8; 32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key")]
pub struct InvalidApiKey;

/// The stored hash of an API key. A fast hash is enough, because 256 random bits cannot be guessed.
///
/// It has no `==`: only [`ApiKeyText::matches`] compares it, in constant time.
#[derive(Clone)]
pub struct ApiKeyHash([u8; 32]);

/// A permission of an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    Send,
    Check,
    Read,
    /// Includes all other scopes.
    Admin,
}

/// The scopes of an API key: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scopes(BTreeSet<Scope>);

impl ApiKeyId {
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl FromStr for ApiKeyId {
    type Err = InvalidApiKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidApiKey)
    }
}

impl fmt::Display for ApiKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl ApiKeyText {
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let (mut id, mut secret) = ([0; 16], [0; 32]);
        rng.fill_bytes(&mut id);
        rng.fill_bytes(&mut secret);
        Self { id: ApiKeyId(uuid::Builder::from_random_bytes(id).into_uuid()), secret }
    }

    pub const fn id(&self) -> ApiKeyId {
        self.id
    }

    /// Returns the full key. It is shown to its owner once.
    pub fn reveal(&self) -> String {
        format!("msk_{}_{}", self.id, URL_SAFE_NO_PAD.encode(self.secret))
    }

    pub fn hash(&self) -> ApiKeyHash {
        ApiKeyHash(self.mac().finalize().into_bytes().into())
    }

    /// Whether `hash` is the hash of this key. Runs in constant time.
    pub fn matches(&self, hash: &ApiKeyHash) -> bool {
        self.mac().verify_slice(&hash.0).is_ok()
    }

    fn mac(&self) -> hmac::Hmac<sha2::Sha256> {
        let mut mac = keyed(self.id.0.as_bytes());
        mac.update(&self.secret);
        mac
    }
}

impl FromStr for ApiKeyText {
    type Err = InvalidApiKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, secret) =
            text.strip_prefix("msk_").and_then(|it| it.split_once('_')).ok_or(InvalidApiKey)?;
        let secret = URL_SAFE_NO_PAD.decode(secret).map_err(|_| InvalidApiKey)?;
        let secret = secret.try_into().map_err(|_| InvalidApiKey)?;
        if id.len() != 32 {
            return Err(InvalidApiKey);
        }
        Ok(Self { id: id.parse()?, secret })
    }
}

/// Shows only the id.
impl fmt::Debug for ApiKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeyText({} …)", self.id)
    }
}

impl ApiKeyHash {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeyHash(…)")
    }
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Send, Self::Check, Self::Read, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Check => "check",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or(UnknownWord)
    }
}

impl Scopes {
    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope) || self.0.contains(&Scope::Admin)
    }
}

impl FromStr for Scopes {
    type Err = UnknownWord;

    /// Parses a comma-separated list of scopes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(|scope| scope.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.0.iter().map(|scope| scope.as_str()).collect();
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_key_matches_its_own_hash_only() {
        let mut rng = StdRng::seed_from_u64(1);
        let (ours, other) = (ApiKeyText::generate(&mut rng), ApiKeyText::generate(&mut rng));

        let shown: ApiKeyText = ours.reveal().parse().unwrap();

        assert_eq!(shown.id(), ours.id());
        assert!(shown.matches(&ours.hash()));
        assert!(!other.matches(&ours.hash()));
        // The secret of one key with the id of another.
        assert!(!ApiKeyText { id: other.id, ..ours }.matches(&shown.hash()));
    }

    #[test]
    fn a_key_with_a_wrong_form_is_refused() {
        let text = ApiKeyText::generate(&mut StdRng::seed_from_u64(1)).reveal();
        assert_eq!(text.len(), 4 + 32 + 1 + 43);

        let truncated = &text[..text.len() - 1];
        for bad in ["", "msk_", "msk__", truncated, &text[4..], &format!("{text}=")] {
            assert!(bad.parse::<ApiKeyText>().is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let key = ApiKeyText::generate(&mut StdRng::seed_from_u64(1));

        assert_eq!(format!("{key:?}"), format!("ApiKeyText({} …)", key.id()));
        assert_eq!(format!("{:?}", key.hash()), "ApiKeyHash(…)");
    }

    #[test]
    fn scopes_allow_what_they_list_and_admin_allows_everything() {
        let scopes: Scopes = "check, send".parse().unwrap();
        assert_eq!(scopes.to_string(), "send,check");
        assert!(scopes.allow(Scope::Send) && scopes.allow(Scope::Check));
        assert!(!scopes.allow(Scope::Read) && !scopes.allow(Scope::Admin));

        let admin: Scopes = "admin".parse().unwrap();
        assert!(Scope::ALL.into_iter().all(|scope| admin.allow(scope)));

        for bad in ["", "send,", "all", "Send"] {
            assert_eq!(bad.parse::<Scopes>(), Err(UnknownWord), "{bad}");
        }
    }
}
