//! Verifications of test numbers (`TEST_NUMBERS`), to which nothing is sent.

use application::ports::NewTest;
use domain::ApiKeyId;

use crate::{
    database::{Parameters, hex, millis},
    verification_row::code_length,
};

/// The parameters of a new verification of a test number.
pub(super) fn new_verification(parameters: Parameters, test: &NewTest) -> Parameters {
    let new = &test.verification;
    parameters
        .id("id", test.id.as_uuid())
        .with("phone", test.phone.as_str())
        .with("ttl", millis(test.ttl))
        .with("origin", new.origin.as_str())
        .with("region", new.region.map(|region| region.as_str().to_owned()))
        .with("code_hash", hex(new.secret.code_hash.as_bytes()))
        .with("seed", hex(new.secret.seed.as_bytes()))
        .with("pepper", new.secret.pepper.as_str())
        .with("code_length", code_length(new.code_length))
        .with("template", new.template.as_ref().map(|template| template.as_str().to_owned()))
        .with("metadata", new.metadata.as_ref().map(|metadata| metadata.as_str().to_owned()))
        .id_if_any("api_key", new.api_key.map(ApiKeyId::as_uuid))
}
