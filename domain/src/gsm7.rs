//! The encoding of an SMS and the number of its segments (3GPP TS 23.038 and 23.040).

/// The basic alphabet: 127 characters. The escape itself is not a character.
const BASIC: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?\
    ¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà";

/// Characters that need an escape and therefore take two septets.
const EXTENDED: &str = "\u{c}^{}\\[~]|€";

/// The second septets of the characters in `EXTENDED`, in the same order.
const EXTENSIONS: [u8; 10] = [0x0a, 0x14, 0x28, 0x29, 0x2f, 0x3c, 0x3d, 0x3e, 0x40, 0x65];

/// The septet that announces a character of `EXTENDED`. The basic alphabet has no character there.
const ESCAPE: u8 = 0x1b;

/// The encoding of a text in an SMS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One SMS holds 160 septets. Each segment of a longer text holds 153.
    Gsm7,
    /// One SMS holds 70 UTF-16 units. Each segment of a longer text holds 67.
    Ucs2,
}

/// The encoding of a text and the number of SMS that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    pub encoding: Encoding,
    pub segments: usize,
    /// The first character outside GSM-7. Because of it the whole text is encoded in UCS-2.
    pub costly: Option<char>,
}

impl Encoding {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gsm7 => "GSM-7",
            Self::Ucs2 => "UCS-2",
        }
    }

    const fn room(self) -> (usize, usize) {
        match self {
            Self::Gsm7 => (160, 153),
            Self::Ucs2 => (70, 67),
        }
    }
}

impl Measure {
    pub fn of(text: &str) -> Self {
        let costly = text.chars().find(|&char| septets_of(char).is_none());
        let encoding = if costly.is_none() { Encoding::Gsm7 } else { Encoding::Ucs2 };
        let places = |char: char| match encoding {
            Encoding::Gsm7 => septets_of(char).unwrap_or(1),
            Encoding::Ucs2 => char.len_utf16(),
        };
        Self { encoding, segments: segments(text.chars().map(places), encoding.room()), costly }
    }
}

/// Returns how many septets a text takes in GSM-7, or `None` if it has a character outside GSM-7.
pub fn septets(text: &str) -> Option<usize> {
    text.chars().map(septets_of).sum()
}

/// Appends the septets of a character to `octets`, each in an octet of its own. Returns `false` and
/// appends nothing if the character is outside GSM-7.
pub fn push_septets(char: char, octets: &mut Vec<u8>) -> bool {
    let place = |alphabet: &str| alphabet.chars().position(|other| other == char);
    if let Some(place) = place(BASIC).and_then(|place| u8::try_from(place).ok()) {
        octets.push(if place < ESCAPE { place } else { place + 1 });
        true
    } else if let Some(place) = place(EXTENDED) {
        octets.extend([ESCAPE, EXTENSIONS[place]]);
        true
    } else {
        false
    }
}

fn septets_of(char: char) -> Option<usize> {
    if BASIC.contains(char) {
        Some(1)
    } else if EXTENDED.contains(char) {
        Some(2)
    } else {
        None
    }
}

/// Counts the segments. A character is never split between two segments.
fn segments(places: impl Iterator<Item = usize> + Clone, (single, part): (usize, usize)) -> usize {
    if places.clone().sum::<usize>() <= single {
        return 1;
    }
    let (mut segments, mut used) = (1, 0);
    for places in places {
        if used + places > part {
            segments += 1;
            used = 0;
        }
        used += places;
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, encoding: Encoding, segments: usize) {
        let measure = Measure::of(text);
        assert_eq!((measure.encoding, measure.segments), (encoding, segments), "{text}");
    }

    #[test]
    fn the_alphabets_have_127_and_10_distinct_characters() {
        assert_eq!(BASIC.chars().count(), 127);
        assert_eq!(EXTENDED.chars().count(), 10);
        assert!(BASIC.chars().all(|char| !EXTENDED.contains(char)));
        let mut all: Vec<char> = BASIC.chars().chain(EXTENDED.chars()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 137);
    }

    #[test]
    fn a_text_outside_gsm7_has_no_septets() {
        assert_eq!(septets(""), Some(0));
        assert_eq!(septets("Your code: 123456"), Some(17));
        assert_eq!(septets("5 €"), Some(4));
        assert_eq!(septets("[{}]~^|\\"), Some(16));
        assert_eq!(septets("Grüße"), Some(5));
        for other in ["Код", "`", "ç", "’", "😀"] {
            assert_eq!(septets(other), None, "{other}");
        }
    }

    #[track_caller]
    fn check_septets(text: &str, expected: &[u8]) {
        let mut octets = Vec::new();
        assert!(text.chars().all(|char| push_septets(char, &mut octets)), "{text}");
        assert_eq!(octets, expected, "{text}");
    }

    /// The values are from the tables in 3GPP TS 23.038 §6.2.1 and §6.2.1.1.
    #[test]
    fn each_character_has_the_septets_of_the_standard() {
        check_septets("@£$¥", &[0x00, 0x01, 0x02, 0x03]);
        check_septets("ΞÆæßÉ ", &[0x1a, 0x1c, 0x1d, 0x1e, 0x1f, 0x20]);
        check_septets("09AZaz", b"09AZaz");
        check_septets("¤¡ÄÖÑÜ§", &[0x24, 0x40, 0x5b, 0x5c, 0x5d, 0x5e, 0x5f]);
        check_septets("¿äöñüà", &[0x60, 0x7b, 0x7c, 0x7d, 0x7e, 0x7f]);
        check_septets("\u{c}^{}", &[0x1b, 0x0a, 0x1b, 0x14, 0x1b, 0x28, 0x1b, 0x29]);
        check_septets("\\[~]", &[0x1b, 0x2f, 0x1b, 0x3c, 0x1b, 0x3d, 0x1b, 0x3e]);
        check_septets("|€", &[0x1b, 0x40, 0x1b, 0x65]);
    }

    #[test]
    fn a_character_outside_gsm7_appends_nothing() {
        let mut octets = Vec::new();

        assert!(!push_septets('ж', &mut octets));
        assert_eq!(octets, []);
    }

    #[test]
    fn a_text_takes_as_many_segments_as_its_encoding_needs() {
        check("", Encoding::Gsm7, 1);
        check(&"a".repeat(160), Encoding::Gsm7, 1);
        check(&"a".repeat(161), Encoding::Gsm7, 2);
        check(&"a".repeat(306), Encoding::Gsm7, 2);
        check(&"a".repeat(307), Encoding::Gsm7, 3);
        check(&"€".repeat(80), Encoding::Gsm7, 1);
        // 76 characters fit into 153 septets; one septet stays empty.
        check(&"€".repeat(152), Encoding::Gsm7, 2);
        check(&"€".repeat(153), Encoding::Gsm7, 3);
        check(&"ы".repeat(70), Encoding::Ucs2, 1);
        check(&"ы".repeat(71), Encoding::Ucs2, 2);
        check(&"ы".repeat(134), Encoding::Ucs2, 2);
        check(&"ы".repeat(135), Encoding::Ucs2, 3);
        check(&"😀".repeat(35), Encoding::Ucs2, 1);
        check(&"😀".repeat(66), Encoding::Ucs2, 2);
        check(&"😀".repeat(67), Encoding::Ucs2, 3);
    }

    #[test]
    fn the_first_character_outside_gsm7_is_reported() {
        assert_eq!(Measure::of("Don’t tell").costly, Some('’'));
        assert_eq!(Measure::of("Don't tell").costly, None);
    }
}
