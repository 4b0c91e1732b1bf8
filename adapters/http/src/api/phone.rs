//! The phone in a request of `/api`, in every form that the Go service accepted.
//!
//! The Go service read requests with gin 1.10 and `encoding/json`, and its clients may depend on
//! what these accept: field names in any case, duplicate names, bytes after the object, invalid
//! UTF-8, and forms. `/v1` is strict. ADR 48 lists what is accepted and what is not.

use std::{convert::Infallible, fmt};

use axum::{
    body::Bytes,
    http::{HeaderMap, header::CONTENT_TYPE, request::Parts},
};
use domain::PhoneNumber;
use futures_util::{future::ready, stream};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use validator::{Validate, ValidationError};

use crate::{
    error::ApiError,
    request::{is_json, media_type},
};

/// The field of a request. Its name may be in any case. (In a form, gin accepted only the name of
/// the Go field: `Phone`.)
const PHONE: &str = "phone";

#[derive(Validate)]
struct SendRequest {
    #[validate(custom(function = is_phone_number))]
    phone: String,
}

/// Reads the phone out of a request whose body has been read.
pub(super) async fn read(head: &Parts, body: Vec<u8>) -> Result<PhoneNumber, ApiError> {
    let phone = match media_type(&head.headers).as_str() {
        json if is_json(json) => from_json(&body),
        "application/x-www-form-urlencoded" => {
            from_pairs(&body).or_else(|| from_query(head)).ok_or("no phone in the form")
        }
        "multipart/form-data" => from_multipart(&head.headers, body).await,
        _ => from_query(head).ok_or("no content type that has a phone"),
    };
    checked(phone).map_err(|rule| {
        tracing::debug!(%rule, "request refused");
        ApiError::InvalidBody
    })
}

/// Reads the object at the start of the body. Bytes after it are ignored, as Go's decoder stops
/// there.
fn from_json(body: &[u8]) -> Result<String, &'static str> {
    let mut json = serde_json::Deserializer::from_slice(body);
    // serde's message may repeat values of the body.
    let PhoneMember(phone) =
        PhoneMember::deserialize(&mut json).map_err(|_| "not a JSON object with a phone")?;
    // Invalid UTF-8 contains a byte that is not a digit.
    String::from_utf8(phone.unwrap_or_default()).map_err(|_| "a phone number has only digits")
}

fn from_query(head: &Parts) -> Option<String> {
    from_pairs(head.uri.query()?.as_bytes())
}

fn from_pairs(form: &[u8]) -> Option<String> {
    let pairs = form_urlencoded::parse(form).filter(|(name, _)| name.eq_ignore_ascii_case(PHONE));
    // Of several fields, gin took the first `Phone`.
    let found = pairs.min_by_key(|(name, _)| name != "Phone");
    found.map(|(_, value)| value.into_owned())
}

async fn from_multipart(headers: &HeaderMap, body: Vec<u8>) -> Result<String, &'static str> {
    const BROKEN: &str = "not a multipart form with a phone";
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = content_type.and_then(|text| multer::parse_boundary(text).ok()).ok_or(BROKEN)?;
    let body = stream::once(ready(Ok::<_, Infallible>(Bytes::from(body))));
    let mut fields = multer::Multipart::new(body, boundary);
    while let Some(field) = fields.next_field().await.map_err(|_| BROKEN)? {
        let is_phone = field.name().is_some_and(|name| name.eq_ignore_ascii_case(PHONE));
        if is_phone && field.file_name().is_none() {
            let phone = field.bytes().await.map_err(|_| BROKEN)?;
            return String::from_utf8(phone.into()).map_err(|_| BROKEN);
        }
    }
    Err(BROKEN)
}

fn checked(phone: Result<String, &'static str>) -> Result<PhoneNumber, String> {
    let request = SendRequest { phone: phone? };
    request.validate().map_err(|errors| rule_broken(&errors))?;
    request.phone.parse().map_err(|error: domain::InvalidPhoneNumber| error.to_string())
}

/// Checks the rule of the domain and that of the Go service, which required 11 digits.
fn is_phone_number(phone: &str) -> Result<(), ValidationError> {
    let broken = |rule: String| Err(ValidationError::new("phone_number").with_message(rule.into()));
    match phone.parse::<PhoneNumber>() {
        Err(error) => broken(error.to_string()),
        Ok(_) if phone.len() < 11 => broken("a phone number has 11 to 15 digits here".to_owned()),
        Ok(_) => Ok(()),
    }
}

/// Joins the messages of the broken rules. validator's own text contains the value.
fn rule_broken(errors: &validator::ValidationErrors) -> String {
    let errors = errors.field_errors();
    let messages = errors.values().flat_map(|errors| errors.iter());
    let messages: Vec<&str> = messages.filter_map(|error| error.message.as_deref()).collect();
    messages.join(", ")
}

/// The value of the last member that is named `phone` in any case and is not null, as
/// `encoding/json` chooses it.
struct PhoneMember(Option<Vec<u8>>);

/// A JSON string as bytes: Go accepts invalid UTF-8 in it, and serde's strings do not.
struct Text(Vec<u8>);

impl<'de> Deserialize<'de> for PhoneMember {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = PhoneMember;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<PhoneMember, A::Error> {
                let mut phone = None;
                while let Some(Text(name)) = members.next_key()? {
                    if !name.eq_ignore_ascii_case(PHONE.as_bytes()) {
                        members.next_value::<IgnoredAny>()?;
                    } else if let Some(Text(value)) = members.next_value::<Option<Text>>()? {
                        phone = Some(value);
                    }
                }
                Ok(PhoneMember(phone))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_names_the_rule_and_not_the_number() {
        let refused = checked(Ok("+79991234567".to_owned()));

        let rule = "a phone number has only the digits 0 to 9, without a leading +";
        assert_eq!(refused.unwrap_err(), rule);
    }
}
