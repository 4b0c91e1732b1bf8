//! The short messages of an SMS.

use std::{collections::BTreeMap, time::Duration};

use application::ports::{SendError, Sms};
use smpp34::{Tlv, submit_sm};

use super::{
    SmppSettings,
    address::{Address, recipient, sender},
    text::{Part, parts},
};

#[cfg(test)]
mod tests;

/// One `submit_sm`.
#[derive(Clone)]
pub(super) struct ShortMessage {
    service_type: String,
    source: Address,
    destination: Address,
    validity: String,
    registered_delivery: u8,
    part: Part,
    parameters: Vec<Tlv>,
}

/// Asks for a receipt of the end, whether good or bad (SMPP 3.4 §5.2.17).
const RECEIPT: u8 = 1;

/// The prefix of a route's parameter that becomes an optional parameter of `submit_sm`.
const PARAMETER: &str = "tlv_";

/// The keys of a route's `params` that become optional parameters.
pub(crate) const PARAMS: &[&str] = &["dlt_entity_id", "dlt_template_id", "tlv_*"];

/// The parameters that operators in India want. The tags are not confirmed.
const KNOWN: [(&str, u16); 2] = [("dlt_entity_id", 0x1400), ("dlt_template_id", 0x1401)];

/// The last day that a relative time can name, as the field for days has no more.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Makes the short messages of an SMS, in order.
///
/// Only the last one asks for a receipt: a message has one reference, and a handset shows a text
/// when all of it has arrived.
pub(super) fn short_messages(
    sms: &Sms,
    settings: &SmppSettings,
    receipts: bool,
) -> Result<Vec<ShortMessage>, SendError> {
    let from = sms.sender.as_deref().unwrap_or(&settings.from);
    let source = sender(from, settings.source)
        .ok_or_else(|| SendError::Misconfigured("the sender is no number and no name".into()))?;
    let destination = recipient(sms.message.phone.as_str(), settings.destination);
    // The last octet of an id is random. A repeated message has the same one, and a handset that
    // gets parts of both joins them to one text.
    let reference = sms.message.id.as_uuid().as_bytes()[15];
    let parts = parts(&sms.text, settings.default_alphabet, reference)
        .ok_or_else(|| SendError::Rejected("the text takes more than 255 parts".into()))?;
    let validity = if settings.validity { relative(sms.good_for) } else { String::new() };
    let parameters = parameters(&sms.params)?;
    let last = parts.len() - 1;
    let messages = parts.into_iter().enumerate().map(|(place, part)| ShortMessage {
        service_type: settings.service_type.clone(),
        source: source.clone(),
        destination: destination.clone(),
        validity: validity.clone(),
        registered_delivery: if receipts && place == last { RECEIPT } else { 0 },
        part,
        parameters: parameters.clone(),
    });
    Ok(messages.collect())
}

impl ShortMessage {
    pub(super) fn encode(&self, sequence: u32) -> Vec<u8> {
        let (source, destination, part) =
            (self.source.clone(), self.destination.clone(), self.part.clone());
        submit_sm::new(
            sequence,
            self.service_type.clone(),
            source.ton,
            source.npi,
            source.text,
            destination.ton,
            destination.npi,
            destination.text,
            part.esm_class,
            0,
            0,
            String::new(),
            self.validity.clone(),
            self.registered_delivery,
            0,
            part.data_coding,
            0,
            part.octets,
        )
        .with_tlvs(self.parameters.iter().cloned())
        .encode()
    }
}

/// Writes a time from now on, in whole seconds (SMPP 3.4 §7.1.1.2): `000000001500000R`.
fn relative(time: Duration) -> String {
    let seconds = time.min(LONGEST).as_secs().max(1);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    format!("0000{days:02}{:02}{:02}{:02}000R", hours % 24, minutes % 60, seconds % 60)
}

/// Makes optional parameters of the route's parameters: `tlv_1400 = "1201…"` becomes the parameter
/// 0x1400 with these octets.
fn parameters(params: &BTreeMap<String, String>) -> Result<Vec<Tlv>, SendError> {
    let wrong = || SendError::Misconfigured("a parameter tlv_… has no tag of four digits".into());
    let mut parameters = Vec::new();
    for (name, value) in params {
        let known = KNOWN.iter().find(|(known, _)| known == name).map(|(_, tag)| *tag);
        let tag = match (known, name.strip_prefix(PARAMETER)) {
            (Some(tag), _) => tag,
            (None, Some(tag)) if tag.len() == 4 => {
                u16::from_str_radix(tag, 16).map_err(|_| wrong())?
            }
            (None, Some(_)) => return Err(wrong()),
            (None, None) => continue,
        };
        parameters.push(Tlv::new(tag, value.as_bytes().to_vec()));
    }
    Ok(parameters)
}
