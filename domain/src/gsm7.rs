//! The encoding of an SMS and the number of its segments (3GPP TS 23.038 and 23.040).

/// The basic alphabet: 127 characters. The escape itself is not a character.
const BASIC: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?\
    ¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà";

/// Characters that need an escape and therefore take two septets.
const EXTENDED: &str = "\u{c}^{}\\[~]|€";

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
