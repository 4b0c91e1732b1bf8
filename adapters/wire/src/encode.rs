//! From a message to a record.

use std::fmt;

use application::ports::Outgoing;

use crate::{
    headers::{
        ACCEPTED_V1, CONTENT_TYPE, EXPIRY_TIME, Headers, ID, SEQUENCE, SOURCE, SPEC_VERSION, TIME,
        TRACE_PARENT, TYPE,
    },
    key::key_of,
    time::time_text,
    value,
};

/// A record to publish.
#[derive(Clone, PartialEq, Eq)]
pub struct WireRecord {
    pub key: String,
    pub value: Vec<u8>,
    pub headers: Headers,
}

/// Leaves out the value, which contains the phone and the code.
impl fmt::Debug for WireRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireRecord")
            .field("key", &self.key)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// Makes the record of a message.
///
/// The code goes out as the message carries it, in clear or sealed.
pub fn encode(outgoing: &Outgoing) -> WireRecord {
    let Outgoing { sequence, message, validity, trace, age: _ } = outgoing;
    let headers = [
        (SPEC_VERSION, "1.0".to_owned()),
        (ID, message.id.to_string()),
        (SOURCE, "/messager".to_owned()),
        (TYPE, ACCEPTED_V1.to_owned()),
        (TIME, time_text(validity.accepted_at)),
        (EXPIRY_TIME, time_text(validity.expires_at)),
        (SEQUENCE, sequence.to_string()),
        (CONTENT_TYPE, "application/json".to_owned()),
        (TRACE_PARENT, trace.as_str().to_owned()),
    ];
    WireRecord {
        key: key_of(&message.phone),
        value: value::write(message),
        headers: headers.map(|(name, text)| (name.to_owned(), text.into_bytes())).into(),
    }
}

#[cfg(test)]
mod tests {
    use domain::{CarriedCode, Message};
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures::{TRACE, outgoing, sealed};

    /// The headers are ours. The Go service ignores them.
    #[test]
    fn value_in_clear_has_the_bytes_of_the_go_service() {
        let record = encode(&outgoing());

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
    fn template_is_written_beside_the_code() {
        let (code, template) = ("048291".parse().unwrap(), "login/de".parse().ok());
        let code = CarriedCode::Clear { code, template };
        let outgoing = Outgoing { message: Message { code, ..outgoing().message }, ..outgoing() };

        let record = encode(&outgoing);

        assert_eq!(
            str::from_utf8(&record.value).unwrap(),
            r#"{"phone":"79991234567","code":"048291","template":"login/de"}"#
        );
    }

    #[test]
    fn sealed_value_has_the_seal_only() {
        let outgoing = sealed();

        let record = encode(&outgoing);

        let value: Value = serde_json::from_slice(&record.value).unwrap();
        assert_eq!(value, json!({ "sealed": outgoing.message.code.as_text() }));
        let clear = encode(&self::outgoing());
        assert_eq!((record.key, record.headers), (clear.key, clear.headers));
    }
}
