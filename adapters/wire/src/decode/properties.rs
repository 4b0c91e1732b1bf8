use application::ports::Outgoing;
use proptest::{collection, option, prelude::*, sample::Index};
use serde_json::Value;

use super::*;
use crate::{
    encode,
    fixtures::{CLEAR, KEY, PLACE, at, keys, outgoing, received, sealed, with_keys},
    headers::{EXPIRY_TIME, SPEC_VERSION, TIME, TYPE},
};

proptest! {
    #[test]
    fn encoded_message_decodes_to_itself(
        id: u128,
        phone in "[0-9]{7,15}",
        code in "[0-9]{4,10}",
        template in option::of("[a-z]{1,32}/[a-z]{2,3}"),
        nonce in option::of(any::<[u8; 24]>()),
        sequence: i64,
        accepted_at in 0_u64..250_000_000_000_000,
        ttl in 0_u64..1_000_000_000,
        (trace, span, flags) in (1_u128.., 1_u64.., any::<u8>()),
    ) {
        let keys = keys(KEY);
        let id = format!("{id:032x}").parse().unwrap();
        let phone = phone.parse().unwrap();
        let code = code.parse().unwrap();
        let template = template.map(|it| it.parse().unwrap());
        let code = match nonce {
            Some(nonce) => keys.seal(id, &phone, &code, template.as_ref(), nonce),
            None => CarriedCode::Clear { code, template },
        };
        let outgoing = Outgoing {
            sequence,
            message: Message { id, phone, code },
            validity: Validity::starting_at(at(accepted_at), Duration::from_millis(ttl)),
            trace: format!("00-{trace:032x}-{span:016x}-{flags:02x}").parse().unwrap(),
            age: Duration::ZERO,
        };

        let record = encode(&outgoing);
        let incoming =
            decode(PLACE, Some(&record.value), &record.headers, with_keys(&keys));

        prop_assert_eq!(incoming, Ok(received(outgoing)));
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(
        value in option::of(prop_oneof![
            collection::vec(any::<u8>(), 0..200),
            r#"\{"phone":"[0-9+a]{9,16}","code":"[0-9 ]{3,11}"\}"#.prop_map(String::into_bytes),
            r#"\{"sealed":"s[12]\.(k1|k2)?\.[0-9A-Za-z_=-]{0,120}"\}"#
                .prop_map(String::into_bytes),
        ]),
        headers in collection::btree_map(
            prop::sample::select(vec![
                SPEC_VERSION, ID, TYPE, TIME, EXPIRY_TIME, SEQUENCE, TRACE_PARENT, "x",
            ]).prop_map(str::to_owned),
            prop_oneof![
                collection::vec(any::<u8>(), 0..40),
                "[0-9a-f.:TZ-]{0,40}".prop_map(String::into_bytes),
            ],
            0..9,
        ),
        partition: i32,
        offset: i64,
        written_at: i64,
    ) {
        let place = Place { topic: "message", partition, offset, written_at };

        let _ = decode(place, value.as_deref(), &headers, CLEAR);
        let _ = decode(place, value.as_deref(), &headers, with_keys(&keys(KEY)));
    }

    /// A damaged record is refused or read literally. A damaged sealed record is refused or read
    /// as the message that was sealed.
    #[test]
    fn damaged_record_is_read_literally_or_refused(
        is_sealed: bool,
        changes in collection::vec((any::<Index>(), any::<u8>()), 0..3),
        cut in option::of(any::<Index>()),
        header in option::of((any::<Index>(), any::<Index>(), any::<u8>())),
        missing in option::of(any::<Index>()),
    ) {
        let keys = keys(KEY);
        let was = if is_sealed { sealed() } else { outgoing() };
        let whole = encode(&was);
        let mut value = whole.value.clone();
        for (at, byte) in changes {
            let at = at.index(value.len());
            value[at] = byte;
        }
        value.truncate(cut.map_or(value.len(), |at| at.index(value.len())));
        let mut headers = whole.headers.clone();
        if let Some((which, at, byte)) = header {
            let text = headers.values_mut().nth(which.index(whole.headers.len())).unwrap();
            let at = at.index(text.len());
            text[at] = byte;
        }
        if let Some(which) = missing {
            headers.remove(whole.headers.keys().nth(which.index(whole.headers.len())).unwrap());
        }

        match decode(PLACE, Some(&value), &headers, with_keys(&keys)) {
            Ok(incoming) if is_sealed => {
                prop_assert_eq!(incoming.message, was.message);
                prop_assert!(incoming.validity.is_some());
            }
            Ok(incoming) => {
                let says: Value = serde_json::from_slice(&value).unwrap();
                let Message { id, phone, code } = incoming.message;
                prop_assert_eq!(named(&says, "phone"), Some(phone.as_str()));
                prop_assert_eq!(named(&says, "code"), Some(&*code.as_text()));
                let by_place =
                    MessageId::of_record(PLACE.topic, PLACE.partition, PLACE.offset, PLACE.written_at);
                let stated = headers.get(ID).map_or(Some(by_place), |bytes| parse(bytes));
                prop_assert_eq!(Some(id), stated);
                prop_assert!(incoming.validity.is_some());
            }
            Err(Unreadable(reason)) => {
                prop_assert!(!reason.contains(|it: char| it.is_ascii_digit()), "{reason}");
            }
        }
    }
}

/// Returns the text of a member, whose name may have other case (ADR 39).
fn named<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?.1.as_str()
}
