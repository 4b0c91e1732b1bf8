use std::{collections::HashSet, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

use crate::{Code, CodeLength, VerificationId};

/// Names a key, so that what was made with it says which one is needed: 1 to 16 letters, digits,
/// `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a key has 1 to 16 letters, digits, _ and -")]
pub struct InvalidKeyId;

/// Why a text is not a list of keys. Says nothing of the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    #[error("1 to 4 keys by comma, each id:base64 of 32 bytes")]
    Form,
    #[error("two keys have one id")]
    SameId,
}

/// The secret that codes are derived from and their hashes are made with.
///
/// Whoever has a pepper and the database has every pending code; with one of the two alone, none.
#[derive(Clone)]
pub struct Pepper {
    id: KeyId,
    key: [u8; 32],
}

/// Peppers in use: the first makes what is new, all are accepted.
#[derive(Debug, Clone)]
pub struct Peppers(Vec<Pepper>);

/// What a code is derived from beside the pepper and the id of its verification.
///
/// Random, so that the pepper alone gives no code: ids are public.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed([u8; 16]);

/// What is kept of a code while it may be checked.
///
/// Not comparable: a process makes hashes of what is tried, and the database, which has the other
/// side, compares.
#[derive(Clone)]
pub struct CodeHash([u8; 32]);

/// What makes one use of a pepper a different function from every other.
#[repr(u8)]
enum Purpose {
    Hash = 1,
    Derive = 2,
    Body = 3,
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

    /// The code of a verification, every one of the `10^length` being equally likely.
    ///
    /// The same for the same arguments: a resend has it without anybody having kept it.
    pub fn derive(&self, id: VerificationId, seed: &Seed, length: CodeLength) -> Code {
        // As in `Code::generate`, bytes above 249 are passed over. A block gives 31 digits on
        // average, so a second one is needed about never.
        let id = id.as_uuid();
        let blocks = (0_u32..).map(|counter| {
            let parts = [id.as_bytes().as_slice(), &seed.0, &counter.to_be_bytes()];
            <[u8; 32]>::from(self.mac(Purpose::Derive, &parts).finalize().into_bytes())
        });
        let digits = blocks.flatten().filter(|byte| *byte < 250).map(|byte| byte % 10);
        Code::from_digits(digits.take(length.get()))
    }

    /// What to keep of the code of a verification.
    pub fn hash(&self, id: VerificationId, code: &Code) -> CodeHash {
        let mac = self.mac(Purpose::Hash, &[id.as_uuid().as_bytes(), code.as_str().as_bytes()]);
        CodeHash(mac.finalize().into_bytes().into())
    }

    /// What to keep of a request's body, to know it again. A plain hash would tell the code in the
    /// body of a check to whoever tries all codes.
    pub fn body_hash(&self, body: &[u8]) -> [u8; 32] {
        self.mac(Purpose::Body, &[body]).finalize().into_bytes().into()
    }

    /// All parts but the last have a fixed length, so no two lists of parts read alike.
    fn mac(&self, purpose: Purpose, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = keyed(&self.key);
        mac.update(&[purpose as u8]);
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

/// Shows the name only.
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

    /// What is kept of a verification if `code` is its code: by each pepper, one hash.
    pub fn hashes(&self, id: VerificationId, code: &Code) -> Vec<(KeyId, CodeHash)> {
        self.0.iter().map(|pepper| (pepper.id.clone(), pepper.hash(id, code))).collect()
    }
}

impl FromStr for Peppers {
    type Err = InvalidKeys;

    /// Reads `id:base64`, several by comma.
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

/// A new key under a new name, as [`Peppers`] and [`crate::PayloadKeys`] read it.
pub fn draw_key(rng: &mut impl CryptoRng) -> String {
    let mut name = [0; 4];
    let mut key = [0; 32];
    rng.fill_bytes(&mut name);
    rng.fill_bytes(&mut key);
    format!("d{:08x}:{}", u32::from_be_bytes(name), STANDARD.encode(key))
}

/// SHA-256 over `parts`, each with its length, so that no two lists of parts read alike.
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
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const FIRST: &str = "p1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const SECOND: &str = "p2:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

    fn peppers(text: &str) -> Peppers {
        text.parse().unwrap()
    }

    fn id(number: u128) -> VerificationId {
        VerificationId::from_uuid(uuid::Uuid::from_u128(number << 8))
    }

    fn six() -> CodeLength {
        6.try_into().unwrap()
    }

    #[test]
    fn derived_digits_are_uniform() {
        const DRAWS: u128 = 40_000;
        let peppers = peppers(FIRST);
        let seed = Seed::from_bytes([7; 16]);
        let mut counts = [[0_u32; 10]; 6];

        for number in 0..DRAWS {
            let code = peppers.first().derive(id(number), &seed, six());
            for (place, digit) in code.as_str().bytes().enumerate() {
                counts[place][usize::from(digit - b'0')] += 1;
            }
        }

        // As in the test of drawn codes: a byte taken modulo ten would fail.
        for digit in 0..10 {
            let total: u32 = counts.iter().map(|place| place[digit]).sum();
            assert!((23_400..24_600).contains(&total), "digit {digit}: {total} of 240,000");
        }
        for count in counts.into_iter().flatten() {
            assert!((3_700..4_300).contains(&count), "{count} of 40,000");
        }
    }

    #[test]
    fn a_code_needs_pepper_id_and_seed() {
        let (first, second) = (peppers(FIRST), peppers(SECOND));
        let (seed, other) = (Seed::from_bytes([7; 16]), Seed::from_bytes([8; 16]));
        let ten = 10.try_into().unwrap();
        let code = first.first().derive(id(1), &seed, ten);

        assert_eq!(first.first().derive(id(1), &seed, ten), code);
        assert_ne!(second.first().derive(id(1), &seed, ten), code);
        assert_ne!(first.first().derive(id(2), &seed, ten), code);
        assert_ne!(first.first().derive(id(1), &other, ten), code);
    }

    /// Codes that are out and kept hashes must not change with the program.
    #[test]
    fn a_code_and_its_hash_are_these_for_ever() {
        let peppers = peppers(FIRST);
        let pepper = peppers.first();
        let code = pepper.derive(id(1), &Seed::from_bytes([7; 16]), 10.try_into().unwrap());
        let hash = pepper.hash(id(1), &"482915".parse().unwrap());

        assert_eq!(code.as_str(), "8395371761");
        assert_eq!(
            hex(hash.as_bytes()),
            "61eb3f3bcbe28f310987ea8efe603fab14bc7856f172066ae26c641ffc286b85"
        );
    }

    #[test]
    fn a_hash_is_of_one_code_and_one_verification() {
        let peppers = peppers(FIRST);
        let pepper = peppers.first();
        let hash = |id, code: &str| *pepper.hash(id, &code.parse::<Code>().unwrap()).as_bytes();

        assert_eq!(hash(id(1), "0482915"), hash(id(1), "0482915"));
        for wrong in ["0482916", "1482915", "482915", "04829150"] {
            assert_ne!(hash(id(1), wrong), hash(id(1), "0482915"), "{wrong:?}");
        }
        assert_ne!(hash(id(2), "0482915"), hash(id(1), "0482915"));
    }

    #[test]
    fn no_process_compares_hashes() {
        trait Either<A> {
            fn is_not_comparable() {}
        }
        impl<T: ?Sized> Either<()> for T {}
        impl<T: ?Sized + PartialEq> Either<u8> for T {}

        // Ambiguous, and so an error, if there were an `==` for it.
        <CodeHash as Either<_>>::is_not_comparable();
    }

    #[test]
    fn two_peppers_are_accepted() {
        let old = peppers(FIRST);
        let code: Code = "482915".parse().unwrap();
        let hash = old.first().hash(id(1), &code);

        let rotated = peppers(&format!("{SECOND}, {FIRST}"));

        assert_eq!(rotated.first().id().as_str(), "p2");
        let hashes = rotated.hashes(id(1), &code);
        assert_eq!(hashes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["p2", "p1"]);
        assert_ne!(hashes[0].1.as_bytes(), hash.as_bytes());
        assert_eq!(hashes[1].1.as_bytes(), hash.as_bytes());
        assert!(peppers(SECOND).get(old.first().id()).is_none());
    }

    #[test]
    fn each_use_of_a_pepper_is_another_function() {
        let peppers = peppers(FIRST);
        let pepper = peppers.first();
        let code = "482915".parse().unwrap();
        let text = [id(1).as_uuid().as_bytes(), "482915".as_bytes()].concat();

        assert_ne!(pepper.hash(id(1), &code).as_bytes(), &pepper.body_hash(&text));
    }

    #[test]
    fn keys_have_a_name_and_32_bytes() {
        let bytes = &FIRST[3..];
        for good in [
            format!("A-b_9:{bytes}"),
            format!("a:{bytes},b:{bytes}, c:{bytes},abcdefghijklmnop:{bytes}"),
        ] {
            assert!(good.parse::<Peppers>().is_ok(), "{good}");
        }
        for bad in [
            String::new(),
            bytes.to_owned(),
            format!(":{bytes}"),
            format!("a b:{bytes}"),
            format!("abcdefghijklmnopq:{bytes}"),
            format!("a:{bytes},"),
            format!("a:{}", &bytes[..40]),
            "a:AAAA".to_owned(),
            format!("a:{bytes},b:{bytes},c:{bytes},d:{bytes},e:{bytes}"),
        ] {
            assert_eq!(bad.parse::<Peppers>().err(), Some(InvalidKeys::Form), "{bad}");
        }
        let twice = format!("a:{bytes},a:{bytes}");
        assert_eq!(twice.parse::<Peppers>().err(), Some(InvalidKeys::SameId));
    }

    #[test]
    fn a_drawn_key_is_a_key_and_no_other() {
        let mut rng = StdRng::seed_from_u64(1);

        let (one, other) = (draw_key(&mut rng), draw_key(&mut rng));

        assert_ne!(one, other);
        let both = peppers(&format!("{one},{other}"));
        assert_ne!(both.0[0].id, both.0[1].id);
        assert_ne!(both.0[0].key, both.0[1].key);
    }

    #[test]
    fn debug_hides_secrets() {
        let shown = format!(
            "{:?} {:?} {:?}",
            peppers(FIRST),
            Seed::from_bytes([7; 16]),
            CodeHash::from_bytes([7; 32])
        );

        assert_eq!(shown, "Peppers([Pepper(p1)]) Seed(…) CodeHash(…)");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }
}
