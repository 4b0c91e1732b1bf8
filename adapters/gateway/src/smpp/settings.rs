//! The settings of an SMSC.

use std::time::Duration;

use super::{DefaultAlphabet, Numbering, ReceiptIds, SmppSettings, address::sender};
use crate::{
    fields::Fields,
    spec::{Field, FieldKind},
};

#[cfg(test)]
mod tests;

/// The port that is registered for SMPP.
const PORT: &str = "2775";

pub(crate) const FIELDS: &[Field] = &[
    Field::optional(
        "url",
        FieldKind::Text,
        "Where the SMSC is: `smpp://host:port`, or `smpps://host:port` with TLS. It replaces `host`, `port` and `tls`.",
    ),
    Field::optional("host", FieldKind::Text, "The name or the address of the SMSC."),
    Field::with_default("port", FieldKind::Number(1, 65_535), PORT, "The port of the SMSC."),
    Field::with_default("tls", FieldKind::Boolean, "false", "Whether the connection uses TLS."),
    Field::required("system_id", FieldKind::Text, "The name of the account."),
    Field::required("password", FieldKind::Secret, "The password of the account."),
    Field::optional("system_type", FieldKind::Text, "The system type, if the SMSC wants one."),
    Field::optional("service_type", FieldKind::Text, "The service type, if the SMSC wants one."),
    Field::optional(
        "from",
        FieldKind::Text,
        "The sender: a name of up to 11 characters, a number or a short code. Without it the SMSC chooses.",
    ),
    Field::with_default(
        "window",
        FieldKind::Number(1, 1_000),
        "10",
        "How many messages may be unanswered on a connection. The SMSC limits it.",
    ),
    Field::with_default(
        "connections",
        FieldKind::Number(1, 16),
        "1",
        "How many connections each process keeps. The SMSC limits their sum over all processes.",
    ),
    Field::with_default(
        "enquire_link_interval",
        FieldKind::Seconds(1, 600),
        "30",
        "How long the SMSC may be silent before it is asked whether it is there.",
    ),
    Field::with_default(
        "default_alphabet",
        FieldKind::OneOf(&["gsm", "latin1", "ascii"]),
        "gsm",
        "The alphabet that the SMSC takes `data_coding` 0 for.",
    ),
    Field::with_default(
        "validity",
        FieldKind::Boolean,
        "true",
        "Whether the SMSC is told how long the code is valid, as a relative `validity_period`.",
    ),
    Field::with_default("receipts", FieldKind::Boolean, "true", "Whether receipts are asked for."),
    Field::with_default(
        "receipt_ids",
        FieldKind::OneOf(&["any", "same", "decimal", "hexadecimal"]),
        "any",
        "The ids in receipts: `same` as in answers, `decimal` or `hexadecimal` if answers have the other kind, or `any` of these.",
    ),
    Field::optional("source_ton", NUMBERING, "The TON of senders, if not by their content."),
    Field::optional("source_npi", NUMBERING, "The NPI of senders, if not by their content."),
    Field::optional("destination_ton", NUMBERING, "The TON of recipients, if not 1."),
    Field::optional("destination_npi", NUMBERING, "The NPI of recipients, if not 1."),
];

const NUMBERING: FieldKind = FieldKind::Number(0, 255);

/// Reads the settings. `None` means that a problem was noted.
pub(crate) fn read(fields: &mut Fields<'_>, timeout: Duration) -> Option<SmppSettings> {
    let place = place(fields);
    let system_id = ascii(fields, "system_id").filter(|it| !it.is_empty());
    let password = fields.secret("password");
    let (system_type, service_type) = (ascii(fields, "system_type"), ascii(fields, "service_type"));
    let (source, destination) = (numbering(fields, "source"), numbering(fields, "destination"));
    let from = fields.text("from").unwrap_or_default();
    if sender(&from, source).is_none() {
        fields.problem("from", "must be up to 20 digits, or a name of up to 11 ASCII characters");
    }
    let (window, connections) = (count(fields, "window"), count(fields, "connections"));
    let enquire_link_interval = fields.seconds("enquire_link_interval");
    let default_alphabet = fields.one_of("default_alphabet");
    let (validity, receipts) = (fields.boolean("validity"), fields.boolean("receipts"));
    let receipt_ids = fields.one_of("receipt_ids");
    let (host, port, tls) = place?;
    Some(SmppSettings {
        host,
        port,
        tls,
        system_id: system_id?,
        password: password?,
        system_type: system_type.unwrap_or_default(),
        service_type: service_type.unwrap_or_default(),
        from,
        source,
        destination,
        window: window?,
        connections: connections?,
        enquire_link_interval: enquire_link_interval?,
        timeout,
        default_alphabet: match default_alphabet? {
            "latin1" => DefaultAlphabet::Latin1,
            "ascii" => DefaultAlphabet::Ascii,
            _ => DefaultAlphabet::Gsm,
        },
        validity: validity?,
        receipts: receipts?,
        receipt_ids: match receipt_ids? {
            "same" => ReceiptIds::Same,
            "decimal" => ReceiptIds::Decimal,
            "hexadecimal" => ReceiptIds::Hexadecimal,
            _ => ReceiptIds::Any,
        },
    })
}

/// Reads host, port and TLS, which a URL may name.
fn place(fields: &mut Fields<'_>) -> Option<(String, u16, bool)> {
    let (host, port, tls) = (fields.text("host"), fields.number("port"), fields.boolean("tls"));
    let Some(url) = fields.text("url") else {
        if host.is_none() {
            fields.problem("url", "is missing, and so is host");
        }
        return Some((host?, u16::try_from(port?).ok()?, tls?));
    };
    for other in ["host", "port", "tls"] {
        if fields.is_set(other) {
            fields.problem(other, "cannot be set together with url");
        }
    }
    let parsed = parse(&url);
    if parsed.is_none() {
        fields.problem("url", "must be smpp://host:port or smpps://host:port");
    }
    parsed
}

/// Parses `smpp://host:port`. An IPv6 address is in brackets.
fn parse(url: &str) -> Option<(String, u16, bool)> {
    let (scheme, authority) = url.split_once("://")?;
    let tls = match scheme {
        "smpp" => false,
        "smpps" | "ssmpp" => true,
        _ => return None,
    };
    let authority = authority.trim_end_matches('/');
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = if port.is_empty() { PORT } else { port.strip_prefix(':')? };
    let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
    let port = port.parse().ok().filter(|port| *port != 0)?;
    is_host.then(|| (host.to_owned(), port, tls))
}

/// Reads a text that a PDU can carry.
fn ascii(fields: &mut Fields<'_>, name: &str) -> Option<String> {
    let text = fields.text(name)?;
    if !text.is_ascii() {
        fields.problem(name, "must be ASCII");
        return None;
    }
    Some(text)
}

fn count(fields: &mut Fields<'_>, name: &str) -> Option<usize> {
    usize::try_from(fields.number(name)?).ok()
}

fn numbering(fields: &mut Fields<'_>, of: &str) -> Numbering {
    let mut octet = |what| {
        let number = fields.number(&format!("{of}_{what}"));
        number.and_then(|number| u8::try_from(number).ok())
    };
    Numbering { ton: octet("ton"), npi: octet("npi") }
}
