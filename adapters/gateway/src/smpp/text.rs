//! The text of an SMS as the short messages of one or more `submit_sm`.

use domain::push_septets;

#[cfg(test)]
mod tests;

/// The alphabet that an SMSC takes `data_coding` 0 for (SMPP 3.4 §5.2.19, "SMSC Default Alphabet").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DefaultAlphabet {
    /// GSM 03.38, one septet in each octet.
    Gsm,
    /// ISO 8859-1. The SMSC converts it to GSM 03.38.
    Latin1,
    /// ASCII. The SMSC converts it to GSM 03.38.
    Ascii,
}

/// The body of one `submit_sm`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) esm_class: u8,
    pub(super) data_coding: u8,
    /// The user data header, if there are several parts, and the text.
    pub(super) octets: Vec<u8>,
}

/// One character, encoded.
struct Place {
    octets: Vec<u8>,
    /// How many septets or UTF-16 units the character takes on the air.
    width: usize,
}

/// How a text is encoded.
struct Coding {
    /// `data_coding`.
    number: u8,
    /// The room of a single message and of one part of several, in septets or UTF-16 units.
    room: (usize, usize),
    encode: fn(char) -> Option<Place>,
}

/// `esm_class` with the indicator of a user data header (SMPP 3.4 §5.2.12).
const UDHI: u8 = 0x40;

/// `data_coding` of the SMSC's default alphabet, and of UCS-2 (SMPP 3.4 §5.2.19).
const DEFAULT_ALPHABET: u8 = 0x00;
const UCS2: u8 = 0x08;

/// Splits a text into parts. Returns `None` if it takes more than the 255 parts that a header can
/// count.
///
/// A text goes out in the default alphabet if each of its characters is both in GSM 03.38 and in
/// that alphabet, else in UCS-2. A character is never split between two parts. `reference` is the
/// same in all parts of a message; a handset joins the parts by it (3GPP TS 23.040 §9.2.3.24.1).
pub(super) fn parts(text: &str, alphabet: DefaultAlphabet, reference: u8) -> Option<Vec<Part>> {
    let (coding, places) = alphabet.coding().encode(text).or_else(|| ucs2().encode(text))?;
    let (single, part) = coding.room;
    if places.iter().map(|place| place.width).sum::<usize>() <= single {
        let octets = places.into_iter().flat_map(|place| place.octets).collect();
        return Some(vec![Part { esm_class: 0, data_coding: coding.number, octets }]);
    }
    let bodies = fill(places, part);
    let total = u8::try_from(bodies.len()).ok()?;
    let numbered = (1..=total).zip(bodies).map(|(number, body)| {
        let mut octets = vec![5, 0, 3, reference, total, number];
        octets.extend(body);
        Part { esm_class: UDHI, data_coding: coding.number, octets }
    });
    Some(numbered.collect())
}

/// Puts characters into bodies of at most `room` septets or UTF-16 units.
fn fill(places: Vec<Place>, room: usize) -> Vec<Vec<u8>> {
    let (mut bodies, mut used) = (vec![Vec::new()], 0);
    for Place { octets, width } in places {
        if used + width > room {
            bodies.push(Vec::new());
            used = 0;
        }
        used += width;
        if let Some(body) = bodies.last_mut() {
            body.extend(octets);
        }
    }
    bodies
}

impl DefaultAlphabet {
    fn coding(self) -> Coding {
        let encode = match self {
            Self::Gsm => gsm,
            Self::Latin1 => latin1,
            Self::Ascii => ascii,
        };
        Coding { number: DEFAULT_ALPHABET, room: (160, 153), encode }
    }
}

fn ucs2() -> Coding {
    let encode = |char: char| {
        let mut units = [0; 2];
        let units = char.encode_utf16(&mut units);
        let octets = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        Some(Place { octets, width: units.len() })
    };
    Coding { number: UCS2, room: (70, 67), encode }
}

impl Coding {
    /// Encodes a text, or returns `None` if one of its characters cannot be encoded.
    fn encode(self, text: &str) -> Option<(Self, Vec<Place>)> {
        let places = text.chars().map(self.encode).collect::<Option<_>>()?;
        Some((self, places))
    }
}

fn gsm(char: char) -> Option<Place> {
    let mut octets = Vec::new();
    push_septets(char, &mut octets).then_some(Place { width: octets.len(), octets })
}

/// The width stays that of GSM 03.38, in which the SMSC sends the text on.
fn latin1(char: char) -> Option<Place> {
    let octet = u8::try_from(u32::from(char)).ok()?;
    Some(Place { octets: vec![octet], width: gsm(char)?.width })
}

fn ascii(char: char) -> Option<Place> {
    if char.is_ascii() { latin1(char) } else { None }
}
