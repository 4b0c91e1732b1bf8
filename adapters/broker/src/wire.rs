//! The bytes on the topic. Producers and consumers of other teams read them: what is here is
//! added to, never changed.
//!
//! A record is an event of CloudEvents in Kafka's binary mode: the value is the data, `{"phone":"…",
//! "code":"…"}`, and each attribute is a header `ce_…`. The Go predecessor and a console producer
//! send the value alone, and that is a message too. A value is read as the predecessor's consumer
//! read it.
//!
//! `"template"` stands beside the code where it is not the default one. Where a payload key is set,
//! the value is `{"sealed":"…"}`, and all of that is inside.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, SystemTime},
};

use application::ports::{Claimed, Incoming, Unreadable};
use chrono::{DateTime, SecondsFormat, Utc};
use domain::{
    CannotOpen, CarriedCode, Message, MessageId, PayloadKeys, PhoneNumber, SealedCode, TemplateKey,
    Validity,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

pub(crate) type Headers = BTreeMap<String, Vec<u8>>;

/// A record as it is published.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WireRecord {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Headers,
}

/// Leaves the value out: phone and code stand in it.
impl fmt::Debug for WireRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireRecord")
            .field("key", &self.key)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// Where a record stands and when it was written, in milliseconds since 1970; negative if the
/// record does not say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) written_at: i64,
}

/// How records are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading<'a> {
    /// How long a message may be sent whose record says only when it was written.
    pub(crate) default_ttl: Duration,
    /// None: what is sealed cannot be opened.
    pub(crate) keys: Option<&'a PayloadKeys>,
    /// Whether a message in clear is taken for unreadable: anyone who can write to the topic could
    /// have written it.
    pub(crate) require_sealed: bool,
}

/// What a value says, as far as it is of use.
#[derive(Default)]
struct Data {
    phone: Option<String>,
    code: Option<String>,
    template: Option<String>,
    sealed: Option<String>,
}

/// Reads [`Data`] as Go's `encoding/json` reads the predecessor's struct: `phone` and `code` in any
/// case, the last one if there are several, `null` as if it were not there, and bytes that are no
/// UTF-8 replaced. Text or `null` must be what they are.
#[derive(Clone, Copy)]
struct DataReader {
    /// Whether to look for `template` and `sealed`, which the predecessor passes over. Their names
    /// are exact, and another type makes them members of some other producer.
    with_ours: bool,
}

enum Name {
    Phone,
    Code,
    Template,
    Sealed,
    Other,
}

/// A JSON text, whatever bytes and surrogates stand in it.
struct GoText(String);

impl<'de> DeserializeSeed<'de> for DataReader {
    type Value = Data;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Data, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for DataReader {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
        let mut data = Data::default();
        let text = |value| if let Value::String(text) = value { Some(text) } else { None };
        while let Some(name) = map.next_key()? {
            match name {
                Name::Phone => {
                    data.phone = map.next_value::<Option<GoText>>()?.map(|it| it.0).or(data.phone);
                }
                Name::Code => {
                    data.code = map.next_value::<Option<GoText>>()?.map(|it| it.0).or(data.code);
                }
                Name::Template if self.with_ours => data.template = text(map.next_value()?),
                Name::Sealed if self.with_ours => data.sealed = text(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(data)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E: de::Error>(self, name: &[u8]) -> Result<Name, E> {
                Ok(match name {
                    b"template" => Name::Template,
                    b"sealed" => Name::Sealed,
                    name if name.eq_ignore_ascii_case(b"phone") => Name::Phone,
                    name if name.eq_ignore_ascii_case(b"code") => Name::Code,
                    _ => Name::Other,
                })
            }
        }

        // As bytes: a name that is no UTF-8 is some other name.
        deserializer.deserialize_bytes(NameVisitor)
    }
}

impl<'de> Deserialize<'de> for GoText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl Visitor<'_> for TextVisitor {
            type Value = GoText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_bytes<E: de::Error>(self, text: &[u8]) -> Result<GoText, E> {
                Ok(GoText(String::from_utf8_lossy(text).into_owned()))
            }
        }

        deserializer.deserialize_bytes(TextVisitor)
    }
}

/// As it is written: in clear as the Go predecessor has it, or under a seal, phone and all.
#[derive(Serialize)]
#[serde(untagged)]
enum Written<'a> {
    Clear {
        phone: &'a str,
        code: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        template: Option<&'a str>,
    },
    Sealed {
        sealed: &'a str,
    },
}

const SPEC_VERSION: &str = "ce_specversion";
const ID: &str = "ce_id";
const SOURCE: &str = "ce_source";
const TYPE: &str = "ce_type";
const TIME: &str = "ce_time";
const EXPIRY_TIME: &str = "ce_expirytime";
const SEQUENCE: &str = "ce_sequence";
const CONTENT_TYPE: &str = "content-type";
const TRACE_PARENT: &str = "traceparent";

const ACCEPTED_V1: &str = "messager.message.accepted.v1";

/// The headers that [`decode`] looks at.
const READ: [&str; 7] = [SPEC_VERSION, ID, TYPE, TIME, EXPIRY_TIME, SEQUENCE, TRACE_PARENT];

/// Ours have some 40 bytes; what is larger by far is a mistake, and not worth parsing.
pub(crate) const LARGEST_VALUE: usize = 64 * 1024;

const NOT_SEALED: Unreadable = Unreadable("not sealed, which REQUIRE_SEALED refuses");
const LACKING: Unreadable = Unreadable("the value lacks a phone or a code as text");

/// A code goes out as it is carried: whoever accepted it has sealed it, or not.
pub(crate) fn encode(claimed: &Claimed) -> WireRecord {
    let Claimed { claim, message, validity, trace } = claimed;
    let data = match &message.code {
        CarriedCode::Clear { code, template } => Written::Clear {
            phone: message.phone.as_str(),
            code: code.as_str(),
            template: template.as_ref().map(TemplateKey::as_str),
        },
        CarriedCode::Sealed(sealed) => Written::Sealed { sealed: sealed.as_str() },
    };
    let headers = [
        (SPEC_VERSION, "1.0".to_owned()),
        (ID, message.id.to_string()),
        (SOURCE, "/messager".to_owned()),
        (TYPE, ACCEPTED_V1.to_owned()),
        (TIME, time_text(validity.accepted_at)),
        (EXPIRY_TIME, time_text(validity.expires_at)),
        (SEQUENCE, claim.sequence.to_string()),
        (CONTENT_TYPE, "application/json".to_owned()),
        (TRACE_PARENT, trace.as_str().to_owned()),
    ];
    WireRecord {
        key: key_of(&message.phone),
        value: serde_json::to_vec(&data).expect("texts are always JSON"),
        headers: headers.map(|(name, text)| (name.to_owned(), text.into_bytes())).into(),
    }
}

/// The name of a header, if [`decode`] looks at it.
pub(crate) fn header_that_is_read(name: &[u8]) -> Option<&'static str> {
    READ.into_iter().find(|read| read.as_bytes() == name)
}

/// Reads a record, ours or a foreign one, which then may be sent for `default_ttl` from when it
/// was written. What is sealed is opened to see whom it is for, and stays sealed.
///
/// A panic here would end the reader, and the next one after it: one record would stop a
/// partition for good.
pub(crate) fn decode(
    place: Place<'_>,
    value: Option<&[u8]>,
    headers: &Headers,
    reading: Reading<'_>,
) -> Result<Incoming, Unreadable> {
    catch_unwind(AssertUnwindSafe(|| read(place, value, headers, reading)))
        .unwrap_or(Err(Unreadable("reading the record panicked")))
}

fn read(
    place: Place<'_>,
    value: Option<&[u8]>,
    headers: &Headers,
    reading: Reading<'_>,
) -> Result<Incoming, Unreadable> {
    check_version(headers)?;
    let data = parse_value(value.ok_or(Unreadable("the record has no value"))?)?;
    let since_written =
        written_at(place).map(|time| Validity::starting_at(time, reading.default_ttl));
    let Some(id) = headers.get(ID) else {
        let Place { topic, partition, offset, written_at } = place;
        let id = MessageId::of_record(topic, partition, offset, written_at);
        let message = data.message(id, reading)?;
        return Ok(Incoming { message, validity: since_written, trace: None, sequence: None });
    };
    let id = parse(id).ok_or(Unreadable("the id is not a UUID"))?;
    Ok(Incoming {
        message: data.message(id, reading)?,
        validity: stated_validity(headers).or(since_written),
        trace: headers.get(TRACE_PARENT).and_then(|bytes| parse(bytes)),
        sequence: headers.get(SEQUENCE).and_then(|bytes| parse(bytes)),
    })
}

fn parse_value(value: &[u8]) -> Result<Data, Unreadable> {
    if value.len() > LARGEST_VALUE {
        return Err(Unreadable("the value is too large"));
    }
    let read = |with_ours| {
        let mut json = serde_json::Deserializer::from_slice(value);
        let data = DataReader { with_ours }.deserialize(&mut json)?;
        json.end()?;
        Ok(data)
    };
    // What the predecessor passes over may hold what no text of ours does.
    read(true).or_else(|_| read(false)).map_err(|error: serde_json::Error| {
        if error.is_data() { LACKING } else { Unreadable("the value is not JSON") }
    })
}

impl Data {
    fn message(self, id: MessageId, reading: Reading<'_>) -> Result<Message, Unreadable> {
        match (self.phone, self.code, self.sealed) {
            (Some(_), Some(_), _) if reading.require_sealed => Err(NOT_SEALED),
            (Some(phone), Some(code), _) => {
                let phone = phone.parse().map_err(|_| Unreadable("the phone is invalid"))?;
                let code = code.parse().map_err(|_| Unreadable("the code is invalid"))?;
                // A name that is none of ours is no reason to send nothing.
                let template = self.template.and_then(|it| it.parse().ok());
                Ok(Message { id, phone, code: CarriedCode::Clear { code, template } })
            }
            (None, None, Some(sealed)) => unseal(id, &sealed, reading.keys),
            _ => Err(LACKING),
        }
    }
}

fn unseal(id: MessageId, text: &str, keys: Option<&PayloadKeys>) -> Result<Message, Unreadable> {
    let sealed: SealedCode = text.parse().map_err(|_| Unreadable("the seal is none of ours"))?;
    let opened = match keys {
        Some(keys) => keys.open(id, &sealed),
        None => Err(CannotOpen::UnknownKey),
    };
    let opened = opened.map_err(|error| {
        Unreadable(match error {
            CannotOpen::UnknownKey => "sealed with a key that is not set here",
            CannotOpen::Damaged => "sealed for another message, or damaged",
        })
    })?;
    Ok(Message { id, phone: opened.phone, code: CarriedCode::Sealed(sealed) })
}

/// The key of a phone's messages: the FNV-1a hash (64 bits) of its digits, in hexadecimal.
///
/// Fixed for ever: another key would put a phone's later messages into another partition than
/// those it still has in flight. It keeps numbers out of the listings of tools, no more; whoever
/// has the hash can try all numbers.
pub(crate) fn key_of(phone: &PhoneNumber) -> String {
    format!("{:016x}", fnv_1a(phone.as_str().as_bytes()))
}

/// The time in milliseconds since 1970, which is as precise as a record is.
pub(crate) fn milliseconds(time: SystemTime) -> i64 {
    DateTime::<Utc>::from(time).timestamp_millis()
}

/// A record that says nothing of its version is taken for what it looks like.
fn check_version(headers: &Headers) -> Result<(), Unreadable> {
    let known = |name, is_known: fn(&str) -> bool| {
        headers.get(name).is_none_or(|bytes| str::from_utf8(bytes).is_ok_and(is_known))
    };
    let specification = known(SPEC_VERSION, |text| text == "1" || text.starts_with("1."));
    let content = known(TYPE, |text| {
        text.strip_prefix(ACCEPTED_V1)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    });
    if specification && content { Ok(()) } else { Err(Unreadable("unknown version")) }
}

fn stated_validity(headers: &Headers) -> Option<Validity> {
    let time = |name| {
        let text = str::from_utf8(headers.get(name)?).ok()?;
        DateTime::parse_from_rfc3339(text).ok().map(SystemTime::from)
    };
    Some(Validity { accepted_at: time(TIME)?, expires_at: time(EXPIRY_TIME)? })
}

/// None if absent, or after the year 9999: a database need not be able to store that.
fn written_at(place: Place<'_>) -> Option<SystemTime> {
    const LATEST: u64 = 253_402_300_799_999;
    let since_1970 = u64::try_from(place.written_at).ok().filter(|time| *time <= LATEST)?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_millis(since_1970))
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn time_text(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn parse<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use application::ports::Claim;
    use proptest::{collection, option, prelude::*, sample::Index};

    use super::*;

    const TTL: Duration = Duration::from_secs(600);
    const PLACE: Place<'_> =
        Place { topic: "message", partition: 1, offset: 42, written_at: 1_700_000_000_123 };
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    const KEY: &str = "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OTHER_KEY: &str = "k2:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

    /// As where no payload key is set.
    const CLEAR: Reading<'_> = Reading { default_ttl: TTL, keys: None, require_sealed: false };

    fn keys(text: &str) -> PayloadKeys {
        text.parse().unwrap()
    }

    fn with_keys(keys: &PayloadKeys) -> Reading<'_> {
        Reading { keys: Some(keys), ..CLEAR }
    }

    fn sealed() -> Claimed {
        let Claimed { message: Message { id, phone, .. }, .. } = claimed();
        let (code, template) = ("048291".parse().unwrap(), "login/de".parse().ok());
        let code = keys(KEY).seal(id, &phone, &code, template.as_ref(), [9; 24]);
        Claimed { message: Message { id, phone, code }, ..claimed() }
    }

    fn received(claimed: Claimed) -> Incoming {
        Incoming {
            message: claimed.message,
            validity: Some(claimed.validity),
            trace: Some(claimed.trace),
            sequence: Some(claimed.claim.sequence),
        }
    }

    fn claimed() -> Claimed {
        Claimed {
            claim: Claim { sequence: 7, attempt: 1 },
            message: Message {
                id: "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c11".parse().unwrap(),
                phone: "79991234567".parse().unwrap(),
                code: "048291".parse().unwrap(),
            },
            validity: Validity::starting_at(at(1_790_000_000_005), TTL),
            trace: TRACE.parse().unwrap(),
        }
    }

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    fn with(changes: &[(&str, Option<&str>)]) -> Result<Incoming, Unreadable> {
        let mut record = encode(&claimed());
        for (name, text) in changes {
            match text {
                Some(text) => record.headers.insert((*name).to_owned(), text.as_bytes().to_vec()),
                None => record.headers.remove(*name),
            };
        }
        decode(PLACE, Some(&record.value), &record.headers, CLEAR)
    }

    fn bare(value: &str) -> Result<Incoming, Unreadable> {
        decode(PLACE, Some(value.as_bytes()), &Headers::new(), CLEAR)
    }

    /// The headers are ours, and the Go service passes them over.
    #[test]
    fn unset_is_as_the_go_service_wrote() {
        let record = encode(&claimed());

        assert_eq!(record.key, "7264d734cbe904bd");
        assert_eq!(
            String::from_utf8(record.value).unwrap(),
            r#"{"phone":"79991234567","code":"048291"}"#
        );
        let headers: Vec<(&str, &str)> = record
            .headers
            .iter()
            .map(|(name, bytes)| (name.as_str(), str::from_utf8(bytes).unwrap()))
            .collect();
        assert_eq!(
            headers,
            [
                ("ce_expirytime", "2026-09-21T14:23:20.005Z"),
                ("ce_id", "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c11"),
                ("ce_sequence", "7"),
                ("ce_source", "/messager"),
                ("ce_specversion", "1.0"),
                ("ce_time", "2026-09-21T14:13:20.005Z"),
                ("ce_type", "messager.message.accepted.v1"),
                ("content-type", "application/json"),
                ("traceparent", TRACE),
            ]
        );
    }

    #[test]
    fn a_template_stands_beside_the_code() {
        let (code, template) = ("048291".parse().unwrap(), "login/de".parse().ok());
        let code = CarriedCode::Clear { code, template };
        let claimed = Claimed { message: Message { code, ..claimed().message }, ..claimed() };

        let record = encode(&claimed);

        assert_eq!(
            str::from_utf8(&record.value).unwrap(),
            r#"{"phone":"79991234567","code":"048291","template":"login/de"}"#
        );
        let incoming = decode(PLACE, Some(&record.value), &record.headers, CLEAR);
        assert_eq!(incoming, Ok(received(claimed)));
    }

    #[test]
    fn a_template_that_is_none_of_ours_is_left_out() {
        for template in ["null", "17", r#""what is this""#, r#"{"name":"login/de"}"#] {
            let value = format!(r#"{{"phone":"79991234567","code":"1234","template":{template}}}"#);

            let incoming = bare(&value).unwrap();

            assert_eq!(incoming.message.code, "1234".parse().unwrap(), "{template}");
        }
    }

    #[test]
    fn a_sealed_value_is_not_the_gos() {
        let claimed = sealed();

        let record = encode(&claimed);

        let value: Value = serde_json::from_slice(&record.value).unwrap();
        assert_eq!(value, serde_json::json!({ "sealed": claimed.message.code.as_text() }));
        let clear = encode(&self::claimed());
        assert_eq!((record.key, record.headers), (clear.key, clear.headers));
    }

    #[test]
    fn what_is_sealed_is_read_with_its_key_and_stays_sealed() {
        let record = encode(&sealed());
        let with = |keys: Option<&PayloadKeys>| {
            decode(PLACE, Some(&record.value), &record.headers, Reading { keys, ..CLEAR })
        };

        let rotated = keys(&format!("{OTHER_KEY},{KEY}"));
        for keys in [keys(KEY), rotated] {
            assert_eq!(with(Some(&keys)), Ok(received(sealed())));
        }
        let unknown = Err(Unreadable("sealed with a key that is not set here"));
        assert_eq!(with(None), unknown);
        assert_eq!(with(Some(&keys(OTHER_KEY))), unknown);
    }

    #[test]
    fn a_seal_holds_for_its_message_only() {
        let record = encode(&sealed());
        let keys = keys(KEY);
        let damaged = Err(Unreadable("sealed for another message, or damaged"));
        let another = "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c12".as_bytes().to_vec();
        let mut headers = record.headers.clone();

        headers.insert(ID.to_owned(), another);
        assert_eq!(decode(PLACE, Some(&record.value), &headers, with_keys(&keys)), damaged);
        headers.remove(ID);
        assert_eq!(decode(PLACE, Some(&record.value), &headers, with_keys(&keys)), damaged);
    }

    #[test]
    fn what_is_in_clear_is_read_wherever_keys_are_set() {
        let record = encode(&claimed());
        let keys = keys(KEY);

        let incoming = decode(PLACE, Some(&record.value), &record.headers, with_keys(&keys));

        assert_eq!(incoming, Ok(received(claimed())));
        // Somebody else's member of that name changes nothing.
        let more = br#"{"phone":"79991234567","code":"048291","sealed":true}"#;
        let incoming = decode(PLACE, Some(more), &record.headers, with_keys(&keys));
        assert_eq!(incoming, Ok(received(claimed())));
    }

    #[test]
    fn a_phone_has_its_key_for_ever() {
        assert_eq!(fnv_1a(b"a"), 0xaf63_dc4c_8601_ec8c, "the vector its authors give");
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8, "the vector its authors give");

        for (phone, key) in
            [("79991234567", "7264d734cbe904bd"), ("899999999999999", "aab1227055988125")]
        {
            assert_eq!(key_of(&phone.parse().unwrap()), key);
        }
    }

    #[test]
    fn a_value_alone_is_a_message() {
        let incoming = bare(r#"{"phone":"79991234567","code":"1234","extra":[1]}"#).unwrap();

        let id = MessageId::of_record("message", 1, 42, PLACE.written_at);
        assert_eq!(incoming.message.id, id);
        assert_eq!(
            incoming.validity,
            Some(Validity::starting_at(at(1_700_000_000_123), TTL)),
            "valid from when it was written"
        );
        assert_eq!((incoming.trace, incoming.sequence), (None, None));
    }

    #[test]
    fn a_record_without_any_time_has_no_validity() {
        let value = br#"{"phone":"79991234567","code":"1234"}"#;

        let incoming =
            decode(Place { written_at: -1, ..PLACE }, Some(value), &Headers::new(), CLEAR).unwrap();

        assert_eq!(incoming.validity, None);
    }

    #[test]
    fn a_broken_time_falls_back_to_when_the_record_was_written() {
        let fallback = Some(Validity::starting_at(at(1_700_000_000_123), TTL));
        for change in [(TIME, None), (TIME, Some("yesterday")), (EXPIRY_TIME, Some("2026-09-21"))] {
            assert_eq!(with(&[change]).unwrap().validity, fallback, "{change:?}");
        }
    }

    #[test]
    fn a_broken_trace_or_sequence_is_left_out() {
        let incoming = with(&[(TRACE_PARENT, Some("00-what")), (SEQUENCE, Some("x"))]).unwrap();

        assert_eq!((incoming.trace, incoming.sequence), (None, None));
    }

    #[test]
    fn later_minor_versions_are_read_and_others_are_not() {
        for (name, text, known) in [
            (SPEC_VERSION, "1.1", true),
            (SPEC_VERSION, "10.0", false),
            (SPEC_VERSION, "2.0", false),
            (TYPE, "messager.message.accepted.v1.2", true),
            (TYPE, "messager.message.accepted.v10", false),
            (TYPE, "messager.message.accepted.v2", false),
            (TYPE, "something.else", false),
        ] {
            let answer = with(&[(name, Some(text))]).map(|_| ());
            let expected = if known { Ok(()) } else { Err(Unreadable("unknown version")) };
            assert_eq!(answer, expected, "{name}: {text}");
        }
    }

    /// Each is a value that the predecessor's consumer, on `encoding/json`, took.
    #[test]
    fn a_value_is_read_as_the_go_service_reads_it() {
        let invalid_utf_8: &[u8] =
            b"{\"phone\":\"79991234567\",\"code\":\"1234\",\"note\":\"\xff\",\"\xfe\":1}";
        for value in [
            br#"{"Phone":"79991234567","Code":"1234"}"#.as_slice(),
            br#"{"PHONE":"79991234567","cOdE":"1234"}"#,
            br#"{"phone":"1","code":"12","Phone":"79991234567","code":"1234"}"#,
            br#"{"Phone":"1","phone":"79991234567","code":"1234"}"#,
            br#"{"phone":"79991234567","phone":null,"code":"1234","Code":null}"#,
            br#"{"phone":null,"Phone":"79991234567","code":"1234"}"#,
            br#"{"phone":"79991234567","code":"1234","note":"\ud800","\udfff":1}"#,
            br#"{"phone":"79991234567","code":"1234","template":"\ud800"}"#,
            br#"{"phone":"79991234567","code":"1234","sealed":1e999,"n":1e999}"#,
            br#"{"\u0070hone":"\u00379991234567","code":"1234"}"#,
            b" \r\n\t{\"phone\":\"79991234567\",\"code\":\"1234\"} \r\n\t",
            invalid_utf_8,
        ] {
            let text = String::from_utf8_lossy(value);
            let message = decode(PLACE, Some(value), &Headers::new(), CLEAR).expect(&text).message;
            assert_eq!(message.phone.as_str(), "79991234567", "{text}");
            assert_eq!(message.code.as_text(), "1234", "{text}");
        }
        let deep = format!(
            r#"{{"phone":"79991234567","code":"1234","sealed":{}1{}}}"#,
            "[".repeat(9_000),
            "]".repeat(9_000)
        );
        assert!(bare(&deep).is_ok());
    }

    /// Each is a value that the predecessor's consumer refused, or sent to no phone.
    #[test]
    fn what_the_go_service_does_not_take_is_refused() {
        for value in [
            r#"{"phone":"79991234567","code":"1234"} x"#,
            r#"{"phone":"79991234567","code":"1234"}{}"#,
            "{\"phone\":\"79991234567\",\"code\":\"1234\"}\0",
            "\u{feff}{\"phone\":\"79991234567\",\"code\":\"1234\"}",
            "{\"phone\":\"79991234567\",\"code\":\"1234\",\"note\":\"a\tb\"}",
            r#"{"phone":"79991234567","phone":79991234567,"code":"1234"}"#,
            r#"{"phone":79991234567,"Phone":"79991234567","code":"1234"}"#,
            r#"{"phone":"79991234567","code":["1234"]}"#,
            r#"{"phone":"79991234567","code":null}"#,
            r#"{"phone ":"79991234567","code":"1234"}"#,
            r#"{"phone":"7999123456\ud800","code":"1234"}"#,
            r#"[{"phone":"79991234567","code":"1234"}]"#,
            "null",
        ] {
            assert!(bare(value).is_err(), "{value}");
        }
        let invalid_utf_8 = b"{\"phone\":\"7999123456\xff\",\"code\":\"1234\"}";
        let refused = decode(PLACE, Some(invalid_utf_8), &Headers::new(), CLEAR);
        assert_eq!(refused, Err(Unreadable("the phone is invalid")));
    }

    #[test]
    fn only_what_is_sealed_is_read_where_seals_are_required() {
        let keys = keys(KEY);
        let strict = Reading { require_sealed: true, ..with_keys(&keys) };
        let refused = Err(Unreadable("not sealed, which REQUIRE_SEALED refuses"));

        let clear = encode(&claimed());
        assert_eq!(decode(PLACE, Some(&clear.value), &clear.headers, strict), refused);
        for value in [
            br#"{"Phone":"79991234567","Code":"1234"}"#.as_slice(),
            br#"{"phone":"79991234567","code":"1234","sealed":"s1.k1.AAAA"}"#,
        ] {
            assert_eq!(decode(PLACE, Some(value), &Headers::new(), strict), refused);
        }
        let under_seal = encode(&sealed());
        let read = decode(PLACE, Some(&under_seal.value), &under_seal.headers, strict);
        assert_eq!(read, Ok(received(sealed())));
    }

    #[test]
    fn says_what_is_wrong_with_a_record() {
        assert_eq!(with(&[(ID, Some("42"))]), Err(Unreadable("the id is not a UUID")));
        assert_eq!(
            decode(PLACE, None, &Headers::new(), CLEAR),
            Err(Unreadable("the record has no value"))
        );
        for (value, text) in [
            ("", "the value is not JSON"),
            ("hello", "the value is not JSON"),
            (r#"{"phone":"79991234567"}"#, "the value lacks a phone or a code as text"),
            (r#" ["79991234567","1234"]"#, "the value lacks a phone or a code as text"),
            (r#"{"phone":79991234567,"code":1}"#, "the value lacks a phone or a code as text"),
            (r#"{"phone":"+79991234567","code":"1234"}"#, "the phone is invalid"),
            (r#"{"phone":"79991234567","code":"12"}"#, "the code is invalid"),
            (r#"{"phone":"79991234567","code":"482915;login/de"}"#, "the code is invalid"),
            (r#"{"phone":"79991234567","code":"s1.k1.AAAA"}"#, "the code is invalid"),
            (r#"{"sealed":17}"#, "the value lacks a phone or a code as text"),
            (
                r#"{"phone":"79991234567","sealed":"s1.k1.AAAA"}"#,
                "the value lacks a phone or a code as text",
            ),
            (r#"{"sealed":"s9.k1.AAAA"}"#, "the seal is none of ours"),
        ] {
            assert_eq!(bare(value), Err(Unreadable(text)), "{value}");
        }
        let padding = " ".repeat(LARGEST_VALUE);
        assert_eq!(
            bare(&format!(r#"{{"phone":"79991234567","code":"1234"}}{padding}"#)),
            Err(Unreadable("the value is too large"))
        );
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
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
            let claimed = Claimed {
                claim: Claim { sequence, attempt: 3 },
                message: Message { id, phone, code },
                validity: Validity::starting_at(at(accepted_at), Duration::from_millis(ttl)),
                trace: format!("00-{trace:032x}-{span:016x}-{flags:02x}").parse().unwrap(),
            };

            let record = encode(&claimed);
            let incoming =
                decode(PLACE, Some(&record.value), &record.headers, with_keys(&keys));

            prop_assert_eq!(incoming, Ok(received(claimed)));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(
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

        /// What is damaged is refused, or read as what it says; under a seal, as it was.
        #[test]
        fn a_damaged_record_is_read_as_what_it_says_or_refused(
            is_sealed: bool,
            changes in collection::vec((any::<Index>(), any::<u8>()), 0..3),
            cut in option::of(any::<Index>()),
            header in option::of((any::<Index>(), any::<Index>(), any::<u8>())),
            missing in option::of(any::<Index>()),
        ) {
            let keys = keys(KEY);
            let was = if is_sealed { sealed() } else { claimed() };
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
                    prop_assert_eq!(&says["phone"], phone.as_str());
                    prop_assert_eq!(&says["code"], &*code.as_text());
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
}
