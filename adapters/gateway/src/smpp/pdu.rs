//! PDUs on the wire: where one ends and the next begins, and the few that we write ourselves.
//!
//! `smpp34` encodes `submit_sm` and decodes `deliver_sm` and `data_sm`. It gives others no way to
//! make a bind, and the length that it writes into a refusing `deliver_sm_resp` is one too small.

use bytes::{Buf, Bytes, BytesMut};
use smpp34::CommandHeader;

pub(super) const GENERIC_NACK: u32 = 0x8000_0000;
pub(super) const SUBMIT_SM: u32 = 0x04;
pub(super) const DELIVER_SM: u32 = 0x05;
pub(super) const UNBIND: u32 = 0x06;
pub(super) const BIND_TRANSCEIVER: u32 = 0x09;
pub(super) const BIND_TRANSCEIVER_RESP: u32 = BIND_TRANSCEIVER | RESPONSE;
pub(super) const OUTBIND: u32 = 0x0b;
pub(super) const ENQUIRE_LINK: u32 = 0x15;
pub(super) const ALERT_NOTIFICATION: u32 = 0x102;
pub(super) const DATA_SM: u32 = 0x103;

/// The bit that makes the id of a request that of its response.
pub(super) const RESPONSE: u32 = 0x8000_0000;

/// SMPP 3.4, as `interface_version`.
const VERSION: u8 = 0x34;

const HEADER: usize = 16;

/// The longest PDU that is read. A `message_payload` holds up to 64 KiB, and no receipt needs it.
const LONGEST: usize = 16 * 1024;

/// One PDU as it arrived.
pub(super) struct Pdu {
    pub(super) header: CommandHeader,
    /// The whole PDU with its header.
    octets: Bytes,
}

/// A length that no PDU has. The stream cannot be read any further.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The fields of a bind as a transceiver.
pub(super) struct Bind<'a> {
    pub(super) system_id: &'a str,
    pub(super) password: &'a str,
    pub(super) system_type: &'a str,
}

impl Pdu {
    /// Takes the first PDU out of what was read. Returns `None` if it has not arrived as a whole.
    pub(super) fn take(input: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let Some(length) = input.first_chunk::<4>().map(|length| u32::from_be_bytes(*length))
        else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        if !(HEADER..=LONGEST).contains(&length) {
            return Err(Malformed);
        }
        if input.len() < length {
            return Ok(None);
        }
        let octets = input.split_to(length).freeze();
        let header = CommandHeader::decode(&octets).map_err(|_| Malformed)?;
        Ok(Some(Self { header, octets }))
    }

    pub(super) fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Returns the first text of the body, such as the `message_id` of a `submit_sm_resp`. It is
    /// empty if the body is missing. A missing final zero is overlooked.
    pub(super) fn first_text(&self) -> String {
        let mut body = self.octets.clone();
        body.advance(HEADER);
        let text = body.split(|octet| *octet == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

impl Bind<'_> {
    pub(super) fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut body = Vec::new();
        for text in [self.system_id, self.password, self.system_type] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        // No type, plan and range of addresses: the SMSC knows which ones are ours.
        body.extend_from_slice(&[VERSION, 0, 0, 0]);
        pdu(BIND_TRANSCEIVER, NO_STATUS, sequence, &body)
    }
}

/// Makes a request without a body, such as `enquire_link`.
pub(super) fn request(command: u32, sequence: u32) -> Vec<u8> {
    pdu(command, NO_STATUS, sequence, &[])
}

/// Makes the response to a request. `deliver_sm_resp` and `data_sm_resp` have an unused message id.
pub(super) fn response(request: u32, status: u32, sequence: u32) -> Vec<u8> {
    let body: &[u8] = if matches!(request, DELIVER_SM | DATA_SM) { &[0] } else { &[] };
    pdu(request | RESPONSE, status, sequence, body)
}

/// Requests have no status (SMPP 3.4 §3.2).
const NO_STATUS: u32 = 0;

fn pdu(command_id: u32, command_status: u32, sequence_number: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("our own PDUs have under 4 GiB");
    let header =
        CommandHeader { command_length: length, command_id, command_status, sequence_number };
    let mut octets = header.encode();
    octets.extend_from_slice(body);
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(octets: &[u8]) -> BytesMut {
        BytesMut::from(octets)
    }

    #[test]
    fn a_pdu_is_taken_when_all_of_it_has_arrived() {
        let whole = [request(ENQUIRE_LINK, 7), request(UNBIND, 8)].concat();
        for arrived in 0..16 {
            assert!(Pdu::take(&mut input(&whole[..arrived])).unwrap().is_none(), "{arrived}");
        }
        let mut input = input(&whole);

        let first = Pdu::take(&mut input).unwrap().unwrap();
        let second = Pdu::take(&mut input).unwrap().unwrap();

        assert_eq!((first.header.command_id, first.header.sequence_number), (ENQUIRE_LINK, 7));
        assert_eq!((second.header.command_id, second.header.sequence_number), (UNBIND, 8));
        assert!(Pdu::take(&mut input).unwrap().is_none());
    }

    #[test]
    fn a_length_that_no_pdu_has_is_malformed() {
        for length in [0_u32, 15, 16 * 1024 + 1, u32::MAX] {
            let found = Pdu::take(&mut input(&length.to_be_bytes()));
            assert_eq!(found.err(), Some(Malformed), "{length}");
        }
    }

    #[test]
    fn the_first_text_of_a_body_may_be_missing_or_unterminated() {
        let text = |body: &[u8]| {
            let octets = pdu(SUBMIT_SM | RESPONSE, 0, 1, body);
            Pdu::take(&mut input(&octets)).unwrap().unwrap().first_text()
        };

        assert_eq!(text(b"abc\0"), "abc");
        assert_eq!(text(b"abc"), "abc");
        assert_eq!(text(b"\0"), "");
        assert_eq!(text(b""), "");
        assert_eq!(text(b"abc\0\x02\x04"), "abc");
    }

    /// The octets of the example in SMPP 3.4 §3.2.3, with our version and as a transceiver.
    #[test]
    fn a_bind_has_the_octets_of_the_specification() {
        let bind = Bind { system_id: "SMPP3TEST", password: "secret08", system_type: "SUBMIT1" };

        let expected = b"\0\0\0\x2f\0\0\0\x09\0\0\0\0\0\0\0\x01\
            SMPP3TEST\0secret08\0SUBMIT1\0\x34\0\0\0";
        assert_eq!(bind.encode(1), expected);
    }

    #[test]
    fn a_response_has_the_id_of_its_request_with_the_first_bit_set() {
        assert_eq!(response(UNBIND, 0, 5), b"\0\0\0\x10\x80\0\0\x06\0\0\0\0\0\0\0\x05");
        assert_eq!(response(DELIVER_SM, 0x64, 5), b"\0\0\0\x11\x80\0\0\x05\0\0\0\x64\0\0\0\x05\0");
    }
}
