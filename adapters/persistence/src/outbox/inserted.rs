use std::collections::HashMap;

use application::ports::NewSend;
use domain::{ApiKeyId, Metadata, Region, TemplateKey, VerificationId};
use uuid::Uuid;

use crate::{
    database::{Rows, millis},
    verification_row::code_length,
};

/// The result of storing a batch.
#[derive(Debug)]
pub(super) struct Inserted {
    /// For each account that was not refused, when its sends were accepted, in milliseconds since
    /// 1970.
    pub(super) accounts: HashMap<String, i64>,
    /// Otherwise a counter is over its quota, and nothing was stored.
    pub(super) holds: bool,
}

/// Adds the columns of new verifications. `of` returns the send of an item.
pub(super) fn verification_columns<'a, I: Iterator + Clone>(
    new: Rows<I>,
    of: impl Fn(I::Item) -> &'a NewSend + Copy,
) -> Rows<I> {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    new.column("verification", |it| VerificationId::of(of(it).message.id).as_uuid())
        .column("phone", |it| of(it).phone.as_str().to_owned())
        .column("origin", |it| of(it).verification.origin.as_str().to_owned())
        .column("region", |it| text(of(it).verification.region.as_ref().map(Region::as_str)))
        .column("code_hash", |it| of(it).verification.secret.code_hash.as_bytes().to_vec())
        .column("seed", |it| of(it).verification.secret.seed.as_bytes().to_vec())
        .column("pepper_id", |it| of(it).verification.secret.pepper.as_str().to_owned())
        .column("code_length", |it| code_length(of(it).verification.code_length))
        .column("template", |it| {
            text(of(it).verification.template.as_ref().map(TemplateKey::as_str))
        })
        .column("metadata", |it| text(of(it).verification.metadata.as_ref().map(Metadata::as_str)))
        .column("api_key", |it| of(it).verification.api_key.map_or(Uuid::nil(), ApiKeyId::as_uuid))
        .column("ttl", |it| millis(of(it).ttl))
}
