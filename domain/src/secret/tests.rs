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

    // As in the test of drawn codes, reducing all bytes modulo ten would fail.
    for digit in 0..10 {
        let total: u32 = counts.iter().map(|place| place[digit]).sum();
        assert!((23_400..24_600).contains(&total), "digit {digit}: {total} of 240,000");
    }
    for count in counts.into_iter().flatten() {
        assert!((3_700..4_300).contains(&count), "{count} of 40,000");
    }
}

#[test]
fn a_code_depends_on_pepper_id_and_seed() {
    let (first, second) = (peppers(FIRST), peppers(SECOND));
    let (seed, other) = (Seed::from_bytes([7; 16]), Seed::from_bytes([8; 16]));
    let ten = 10.try_into().unwrap();
    let code = first.first().derive(id(1), &seed, ten);

    assert_eq!(first.first().derive(id(1), &seed, ten), code);
    assert_ne!(second.first().derive(id(1), &seed, ten), code);
    assert_ne!(first.first().derive(id(2), &seed, ten), code);
    assert_ne!(first.first().derive(id(1), &other, ten), code);
}

/// Codes in flight and stored hashes must stay valid when the program changes.
#[test]
fn a_code_and_its_hash_never_change() {
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
fn a_hash_belongs_to_one_code_and_one_verification() {
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
fn hashes_have_no_equality() {
    trait Either<A> {
        fn is_not_comparable() {}
    }
    impl<T: ?Sized> Either<()> for T {}
    impl<T: ?Sized + PartialEq> Either<u8> for T {}

    // If `CodeHash` had an `==`, this call would be ambiguous and would not compile.
    <CodeHash as Either<_>>::is_not_comparable();
}

#[test]
fn codes_of_all_peppers_are_accepted() {
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
fn hashes_of_codes_and_bodies_differ_for_the_same_input() {
    let peppers = peppers(FIRST);
    let pepper = peppers.first();
    let code = "482915".parse().unwrap();
    let text = [id(1).as_uuid().as_bytes(), "482915".as_bytes()].concat();

    assert_ne!(pepper.hash(id(1), &code).as_bytes(), &pepper.body_hash(&text));
}

#[test]
fn a_key_has_an_id_and_32_bytes() {
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
fn drawn_keys_parse_and_differ() {
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

/// Providers keep the URLs that they were given, with their tokens.
#[test]
fn a_receipt_token_never_changes() {
    let main: GatewayName = "main".parse().unwrap();

    let token = peppers(FIRST).first().receipt_token(&main);

    assert_eq!(token, "39P_aOytQg-BSE66BztuFA");
}

#[test]
fn a_receipt_token_is_good_for_its_gateway_under_every_pepper() {
    let (main, other): (GatewayName, GatewayName) =
        ("main".parse().unwrap(), "main2".parse().unwrap());
    let both = peppers(&format!("{SECOND},{FIRST}"));
    let (old, new) =
        (peppers(FIRST).first().receipt_token(&main), both.first().receipt_token(&main));

    assert_ne!(old, new);
    for token in [&old, &new] {
        assert!(both.accept_receipt_token(&main, token));
        assert!(!both.accept_receipt_token(&other, token));
    }
    assert!(!peppers(SECOND).accept_receipt_token(&main, &old));
    let full = format!("{new}AAAAAAAAAAAAAAAAAAAAA");
    let other_first = format!("{}{}", if new.starts_with('A') { 'B' } else { 'A' }, &new[1..]);
    for bad in ["", "A", &new[..20], &new[..4], &full, &format!("{new}="), &other_first] {
        assert!(!both.accept_receipt_token(&main, bad), "{bad}");
    }
}
