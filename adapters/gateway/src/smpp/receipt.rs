//! Delivery receipts in the spellings that SMSCs use.
//!
//! SMPP 3.4 leaves the form of a receipt to the vendor: the parameters `receipted_message_id` and
//! `message_state` (§5.3.2.12, §5.3.2.35), the text that its appendix B shows as an example, or both.

use application::ports::Receipt;
use smpp34::{Tlv, TlvList};

#[cfg(test)]
mod tests;

/// A `deliver_sm` or a `data_sm` from the SMSC.
pub(super) struct Delivery<'a> {
    pub(super) esm_class: u8,
    pub(super) data_coding: u8,
    pub(super) text: &'a [u8],
    pub(super) parameters: Vec<Tlv>,
}

/// The content of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// The message with this id, in the SMSC's spelling, came to its end.
    Final { id: String, receipt: Receipt },
    /// The message goes on, or its state is unknown.
    Intermediate,
    /// An SMS of a subscriber, or an acknowledgement of one.
    NoReceipt,
    /// A receipt without an id, or with an unknown state.
    Unreadable,
}

/// How the ids in receipts relate to those in `submit_sm_resp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReceiptIds {
    /// They are the same, or one is the hexadecimal and one the decimal spelling, as receipts show.
    Any,
    Same,
    /// `submit_sm_resp` has hexadecimal ids, and receipts have decimal ones.
    Decimal,
    /// `submit_sm_resp` has decimal ids, and receipts have hexadecimal ones.
    Hexadecimal,
}

/// The bits of `esm_class` that name the type of a message (SMPP 3.4 §5.2.12), and their values.
const TYPE: u8 = 0x3c;
const ORDINARY: u8 = 0x00;
const RECEIPT: u8 = 0x04;
const INTERMEDIATE: u8 = 0x20;
const UDHI: u8 = 0x40;

const UCS2: u8 = 0x08;

/// The length at which ids of HTTP providers are cut off, too. SMPP 3.4 allows 64.
const LONGEST_ID: usize = 200;

enum State {
    Final(Receipt),
    Intermediate,
}

/// Reads a delivery.
///
/// A text is read as a receipt only if `esm_class` says so: a subscriber can write any text. The
/// parameters are trusted without `esm_class`, because a subscriber cannot send them.
pub(super) fn read(delivery: &Delivery<'_>) -> Report {
    let id = delivery.parameters.receipted_message_id().filter(|id| !id.is_empty());
    let state = delivery.parameters.message_state();
    match delivery.esm_class & TYPE {
        ORDINARY if id.is_some() && state.is_some() => {}
        RECEIPT => {}
        INTERMEDIATE => return Report::Intermediate,
        _ => return Report::NoReceipt,
    }
    let text = delivery.readable();
    let id = id.or_else(|| field(&text, "id").map(str::to_owned));
    let state = state.and_then(state_of_number);
    match (id, state.or_else(|| field(&text, "stat").and_then(state_of_word))) {
        (_, Some(State::Intermediate)) => Report::Intermediate,
        (Some(id), Some(State::Final(receipt))) => Report::Final { id, receipt },
        _ => Report::Unreadable,
    }
}

/// Returns the spelling of an id under which it is stored: small letters, no leading zeros, at most
/// 200 characters.
pub(super) fn canonical(id: &str) -> String {
    let shown = id.chars().filter(|char| !char.is_control()).take(LONGEST_ID);
    let small = shown.collect::<String>().trim().to_ascii_lowercase();
    let short = small.trim_start_matches('0');
    if short.is_empty() { small } else { short.to_owned() }
}

impl ReceiptIds {
    /// Returns the reference, in the stored spelling, of the message whose receipt has this id. An id
    /// that is not a number has only one spelling.
    pub(super) fn reference(self, id: &str) -> String {
        let same = canonical(id);
        let other = match self {
            Self::Any | Self::Same => None,
            Self::Decimal => hexadecimal_of(&same),
            Self::Hexadecimal => decimal_of(&same),
        };
        other.unwrap_or(same)
    }
}

fn hexadecimal_of(decimal: &str) -> Option<String> {
    decimal.parse::<u128>().ok().map(|number| format!("{number:x}"))
}

fn decimal_of(hexadecimal: &str) -> Option<String> {
    u128::from_str_radix(hexadecimal, 16).ok().map(|number| number.to_string())
}

impl Delivery<'_> {
    /// Returns the text, which the parameter `message_payload` may contain instead.
    fn readable(&self) -> String {
        let text = match self.parameters.message_payload() {
            Some(payload) if self.text.is_empty() => payload,
            _ => self.text,
        };
        let header = if self.esm_class & UDHI == 0 {
            0
        } else {
            text.first().map_or(0, |length| usize::from(*length) + 1)
        };
        let text = text.get(header..).unwrap_or_default();
        if self.data_coding == UCS2 {
            let (units, _) = text.as_chunks::<2>();
            let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
            char::decode_utf16(units).map(|char| char.unwrap_or('\u{fffd}')).collect()
        } else {
            // Only ASCII matters. Any octet above it becomes some other character.
            text.iter().copied().map(char::from).collect()
        }
    }
}

/// Finds `name:value` in the text of a receipt, in any order and in large or small letters.
///
/// `text:` holds the beginning of the SMS, which may look like a field. A field before it counts
/// first.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let sms = value_after(text, "text").map_or(text.len(), |value| text.len() - value.len());
    value(&text[..sms], name).or_else(|| value(text, name))
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let ends = |char: char| char.is_whitespace() || matches!(char, ',' | ';' | '\0');
    let value = value_after(text, name)?.trim_start_matches(' ').split(ends).next()?;
    // Else the value is missing, and this is the next field.
    (!value.is_empty() && !value.contains(':')).then_some(value)
}

/// Returns what follows `name:`, if that is a word of its own.
fn value_after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut from = 0;
    while let Some(colon) = text[from..].find(':').map(|place| from + place) {
        let before = &text[..colon];
        let word = before.rsplit(|char: char| !char.is_alphanumeric()).next().unwrap_or_default();
        if word.eq_ignore_ascii_case(name) {
            return Some(&text[colon + 1..]);
        }
        from = colon + 1;
    }
    None
}

/// SMPP 3.4 §5.2.28. `ACCEPTED` and `UNKNOWN` do not say whether the handset has the message.
fn state_of_number(state: u8) -> Option<State> {
    match state {
        2 => Some(State::Final(Receipt::Delivered)),
        // EXPIRED, DELETED, UNDELIVERABLE, REJECTED, and SKIPPED of SMPP 5.0.
        3 | 4 | 5 | 8 | 9 => Some(State::Final(Receipt::Undelivered)),
        // SCHEDULED of SMPP 5.0, ENROUTE, ACCEPTED, UNKNOWN.
        0 | 1 | 6 | 7 => Some(State::Intermediate),
        _ => None,
    }
}

/// SMPP 3.4 appendix B, and the unabridged words that some SMSCs write.
fn state_of_word(word: &str) -> Option<State> {
    match word.to_ascii_uppercase().as_str() {
        "DELIVRD" | "DELIVERED" => Some(State::Final(Receipt::Delivered)),
        "EXPIRED" | "DELETED" | "UNDELIV" | "UNDELIVERED" | "UNDELIVERABLE" | "REJECTD"
        | "REJECTED" | "FAILED" | "SKIPPED" => Some(State::Final(Receipt::Undelivered)),
        "ENROUTE" | "ACCEPTD" | "ACCEPTED" | "UNKNOWN" | "SCHEDULED" | "BUFFRED" | "BUFFERED" => {
            Some(State::Intermediate)
        }
        _ => None,
    }
}
