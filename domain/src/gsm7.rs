//! How an SMS is encoded, and into how many parts it falls (3GPP TS 23.038 and 23.040).

/// The alphabet without an escape: 127 characters, the escape itself being none.
const BASIC: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?\
    ¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà";

/// The characters that take an escape, and so two places.
const EXTENDED: &str = "\u{c}^{}\\[~]|€";

/// How a text goes over the air.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// 160 places in one SMS, 153 in each of several.
    Gsm7,
    /// 70 places in one SMS, 67 in each of several.
    Ucs2,
}

/// What a text costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    pub encoding: Encoding,
    pub segments: usize,
    /// The first character that is not in GSM-7, for which all of the text has UCS-2.
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

/// How many places of GSM-7 a text takes; none if it has a character that is not in it.
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

/// A character is not split between two parts.
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
    fn the_alphabet_is_whole() {
        assert_eq!(BASIC.chars().count(), 127);
        assert_eq!(EXTENDED.chars().count(), 10);
        assert!(BASIC.chars().all(|char| !EXTENDED.contains(char)));
        let mut all: Vec<char> = BASIC.chars().chain(EXTENDED.chars()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 137);
    }

    #[test]
    fn places_of_gsm7() {
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
    fn gsm7_and_segments() {
        check("", Encoding::Gsm7, 1);
        check(&"a".repeat(160), Encoding::Gsm7, 1);
        check(&"a".repeat(161), Encoding::Gsm7, 2);
        check(&"a".repeat(306), Encoding::Gsm7, 2);
        check(&"a".repeat(307), Encoding::Gsm7, 3);
        check(&"€".repeat(80), Encoding::Gsm7, 1);
        // 76 of them fit into 153 places, one place is left empty.
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
    fn says_which_character_makes_it_costly() {
        assert_eq!(Measure::of("Don’t tell").costly, Some('’'));
        assert_eq!(Measure::of("Don't tell").costly, None);
    }
}
