use std::time::{Duration, SystemTime};

use domain::{
    ApiKeyId, CodeHash, CodeLength, KeyId, Metadata, Number, NumberType, Origin, PhoneNumber,
    Recipient, Region, Seed, TemplateKey, VerificationId, VerificationStatus,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    pub id: VerificationId,
    pub origin: Origin,
    pub phone: PhoneNumber,
    pub region: Option<Region>,
    pub status: VerificationStatus,
    /// Codes that were tried against it.
    pub attempts: u8,
    /// Messages so far.
    pub sends: u8,
    pub created_at: SystemTime,
    /// When its latest message was accepted.
    pub sent_at: SystemTime,
    pub expires_at: SystemTime,
    pub ended_at: Option<SystemTime>,
    /// The database's now.
    pub read_at: SystemTime,
    pub code_length: CodeLength,
    pub template: Option<TemplateKey>,
    pub metadata: Option<Metadata>,
    /// That of the caller who began it.
    pub api_key: Option<ApiKeyId>,
    /// None once it has ended.
    pub secret: Option<CodeSecret>,
}

/// What a code is derived from again, with the pepper of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeSecret {
    pub pepper: KeyId,
    pub seed: Seed,
}

/// What is kept of a verification beside its phone and how long it lasts.
#[derive(Debug, Clone)]
pub struct NewVerification {
    pub origin: Origin,
    pub region: Option<Region>,
    pub secret: NewSecret,
    pub code_length: CodeLength,
    /// None: the default one.
    pub template: Option<TemplateKey>,
    pub metadata: Option<Metadata>,
    pub api_key: Option<ApiKeyId>,
}

/// What is kept of a code.
#[derive(Debug, Clone)]
pub struct NewSecret {
    pub pepper: KeyId,
    pub seed: Seed,
    pub code_hash: CodeHash,
}

impl Verification {
    /// As it is right after it began.
    pub fn begun(
        id: VerificationId,
        phone: PhoneNumber,
        ttl: Duration,
        new: &NewVerification,
        at: SystemTime,
    ) -> Self {
        let NewSecret { pepper, seed, .. } = new.secret.clone();
        Self {
            id,
            origin: new.origin,
            phone,
            region: new.region,
            status: VerificationStatus::Pending,
            attempts: 0,
            sends: 1,
            created_at: at,
            sent_at: at,
            expires_at: at + ttl,
            ended_at: None,
            read_at: at,
            code_length: new.code_length,
            template: new.template.clone(),
            metadata: new.metadata.clone(),
            api_key: new.api_key,
            secret: Some(CodeSecret { pepper, seed }),
        }
    }

    /// Where its messages go, as far as that is kept.
    pub(crate) fn recipient(&self) -> Recipient {
        let Self { phone, region, .. } = self;
        if self.origin == Origin::Api && region.is_none() {
            return Recipient::Unreadable(phone.clone());
        }
        let kind = NumberType::Unknown;
        Recipient::Number(Number { phone: phone.clone(), region: *region, kind })
    }

    /// Whether it is one of a test number.
    pub fn is_test(&self) -> bool {
        self.origin == Origin::Test
    }

    /// How long it lasts in all.
    pub fn ttl(&self) -> Duration {
        self.expires_at.duration_since(self.created_at).unwrap_or_default()
    }

    /// How long it was good for when it was read.
    pub fn good_for(&self) -> Duration {
        self.expires_at.duration_since(self.read_at).unwrap_or_default()
    }

    /// How long ago its latest message was accepted when it was read.
    pub fn since_sent(&self) -> Duration {
        self.read_at.duration_since(self.sent_at).unwrap_or_default()
    }
}
