use application::ports::{CodeSecret, Verification};
use domain::{CodeLength, Metadata, Seed, VerificationId};
use sea_orm::FromQueryResult;

use crate::database::{DatabaseError, Fragment, parsed, read_hex, time};

/// The columns of [`VerificationRow`]. A pending verification whose time is up is shown as expired,
/// whether or not housekeeping has ended it.
pub(crate) const VERIFICATION_COLUMNS: Fragment = Fragment::pair(
    "verification_columns",
    "
        id::text AS id, origin, phone, region, attempts::integer AS attempts,
        sends::integer AS sends, extra_sends::integer AS extra_sends,
        code_length::integer AS code_length, template, metadata,
        pepper_id, api_key::text AS api_key,
        CASE WHEN status = 'pending' AND expires_at <= now() THEN 'expired' ELSE status END
            AS status,
        CASE WHEN expires_at > now() THEN encode(seed, 'hex') END AS seed,
        {millis(created_at)} AS created_at, {millis(sent_at)} AS sent_at,
        {millis(expires_at)} AS expires_at,
        {millis(CASE WHEN status = 'pending' AND expires_at <= now() THEN expires_at
            ELSE ended_at END)} AS ended_at,
        {millis(now())} AS read_at",
    "
        id, origin, phone, region, attempts, sends, extra_sends, code_length, template, metadata, pepper_id,
        api_key,
        CASE WHEN status = 'pending' AND expires_at <= {now} THEN 'expired' ELSE status END
            AS status,
        CASE WHEN expires_at > {now} THEN nullif(lower(hex(seed)), '') END AS seed,
        created_at, sent_at, expires_at,
        CASE WHEN status = 'pending' AND expires_at <= {now} THEN expires_at ELSE ended_at END
            AS ended_at,
        {now} AS read_at",
);

#[derive(Debug, FromQueryResult)]
pub(crate) struct VerificationRow {
    id: String,
    origin: String,
    phone: String,
    region: Option<String>,
    attempts: i32,
    sends: i32,
    extra_sends: i32,
    code_length: i32,
    template: Option<String>,
    metadata: Option<String>,
    pepper_id: String,
    api_key: Option<String>,
    status: String,
    seed: Option<String>,
    created_at: i64,
    sent_at: i64,
    expires_at: i64,
    ended_at: Option<i64>,
    read_at: i64,
}

impl VerificationRow {
    pub(crate) fn verification(self) -> Result<Verification, DatabaseError> {
        let secret = match self.seed {
            Some(seed) => Some(CodeSecret {
                pepper: parsed(&self.pepper_id, "a key's name")?,
                seed: Seed::from_bytes(read_hex(&seed)?),
            }),
            None => None,
        };
        Ok(Verification {
            id: VerificationId::from_uuid(parsed(&self.id, "an id")?),
            origin: parsed(&self.origin, "an origin")?,
            phone: parsed(&self.phone, "a phone")?,
            region: self.region.map(|region| parsed(&region, "a region")).transpose()?,
            status: parsed(&self.status, "a status")?,
            attempts: small(self.attempts, "attempts")?,
            sends: small(self.sends, "sends")?,
            extra_sends: small(self.extra_sends, "extra_sends")?,
            created_at: time(self.created_at),
            sent_at: time(self.sent_at),
            expires_at: time(self.expires_at),
            ended_at: self.ended_at.map(time),
            read_at: time(self.read_at),
            code_length: usize::from(small(self.code_length, "code_length")?)
                .try_into()
                .map_err(|_| DatabaseError::not("a length of codes"))?,
            template: self.template.map(|key| parsed(&key, "a template")).transpose()?,
            metadata: self.metadata.map(Metadata::new),
            api_key: self.api_key.map(|id| parsed(&id, "a key's id")).transpose()?,
            secret,
        })
    }
}

fn small(number: i32, column: &str) -> Result<u8, DatabaseError> {
    u8::try_from(number).map_err(|_| DatabaseError::not(&format!("a small {column}")))
}

/// The length of a code, as it is stored.
pub(crate) fn code_length(length: CodeLength) -> i16 {
    i16::try_from(length.get()).unwrap_or(i16::MAX)
}
