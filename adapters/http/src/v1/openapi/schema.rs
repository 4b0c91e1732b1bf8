//! Schemas that several models share.

use serde_json::{Value, json};
use utoipa::openapi::{
    Object, ObjectBuilder, Schema, Type,
    schema::{KnownFormat, SchemaFormat},
};

use super::super::{body::MAX_TYPED, settings::V1Settings};

pub(in crate::v1) fn phone(settings: &V1Settings) -> Object {
    let form = match settings.default_region {
        None => "A phone number in international form. The + is optional.",
        Some(_) => "A phone number in international form, or as dialled in the default region.",
    };
    let says = format!(
        "{form} It must be a valid number of a numbering plan. Spaces, brackets, dashes, dots, \
         slashes, tildes, invisible characters and a leading tel: are ignored. Digits of every \
         script are accepted."
    );
    typed()
        .min_length(Some(4))
        .description(Some(says))
        .examples([json!("+79991234567"), json!("+7 (999) 123-45-67")])
        .build()
}

pub(in crate::v1) fn code() -> Object {
    typed()
        .min_length(Some(4))
        .description(Some(
            "The code as the user typed it: 4 to 10 digits. Spaces, line breaks, dashes and \
             invisible characters are ignored. Digits of every script are accepted.",
        ))
        .examples([json!("482915")])
        .build()
}

/// A string that people type.
fn typed() -> ObjectBuilder {
    ObjectBuilder::from(string()).max_length(Some(MAX_TYPED))
}

pub(in crate::v1) fn string() -> Object {
    Object::with_type(Type::String)
}

pub(in crate::v1) fn string_schema() -> Schema {
    Schema::Object(string())
}

pub(in crate::v1) fn pattern(pattern: &str) -> Object {
    ObjectBuilder::from(string()).pattern(Some(pattern)).build()
}

pub(in crate::v1) fn enumerated(values: Vec<Value>) -> Object {
    ObjectBuilder::from(string()).enum_values(Some(values)).build()
}

pub(in crate::v1) fn constant(text: &str) -> Object {
    enumerated(vec![json!(text)])
}

/// A string whose values may grow in number, which an `enum` forbids.
pub(in crate::v1) fn known(values: &[&str]) -> Object {
    said(string(), &format!("Known values: {}.", values.join(", ")))
}

/// Puts a sentence before the description.
pub(in crate::v1) fn said(object: Object, says: &str) -> Object {
    let before = object.description.clone().map(|before| format!(" {before}")).unwrap_or_default();
    ObjectBuilder::from(object).description(Some(format!("{says}{before}"))).build()
}

/// A number in an answer, without a maximum: that may depend on settings.
pub(in crate::v1) fn count() -> Object {
    let least = utoipa::Number::from(0_usize);
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least)).build()
}

pub(in crate::v1) fn whole(least: u64, most: u64) -> ObjectBuilder {
    let number = |number: u64| utoipa::Number::from(usize::try_from(number).unwrap_or(usize::MAX));
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(number(least)))
        .maximum(Some(number(most)))
}

pub(in crate::v1) fn seconds() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .description(Some("Seconds."))
        .build()
}

pub(in crate::v1) fn time() -> Object {
    ObjectBuilder::from(string())
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .build()
}

pub(in crate::v1) fn boolean() -> Object {
    Object::with_type(Type::Boolean)
}
