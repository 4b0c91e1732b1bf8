use std::time::{Duration, SystemTime};

use domain::{
    ApiKeyId, CodeHash, CodeLength, KeyId, Metadata, Number, NumberType, Origin, PhoneNumber,
    Recipient, Region, Seed, TemplateKey, VerificationId, VerificationStatus,
};

/// A verification as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    pub id: VerificationId,
    pub origin: Origin,
    pub phone: PhoneNumber,
    pub region: Option<Region>,
    pub status: VerificationStatus,
    /// The number of codes that were tried.
    pub attempts: u8,
    /// The number of messages.
    pub sends: u8,
    /// How many of them no caller asked for: they were sent because a receipt was missing.
    pub extra_sends: u8,
    pub created_at: SystemTime,
    /// When the latest message that a caller asked for was accepted.
    pub sent_at: SystemTime,
    pub expires_at: SystemTime,
    pub ended_at: Option<SystemTime>,
    /// The time of the database clock when this was read.
    pub read_at: SystemTime,
    pub code_length: CodeLength,
    pub template: Option<TemplateKey>,
    pub metadata: Option<Metadata>,
    /// The API key of the caller that began it.
    pub api_key: Option<ApiKeyId>,
    /// `None` once the verification has ended.
    pub secret: Option<CodeSecret>,
}

/// The seed from which the code is derived, and the id of the pepper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeSecret {
    pub pepper: KeyId,
    pub seed: Seed,
}

/// A new verification, without its phone and its time to live.
#[derive(Debug, Clone)]
pub struct NewVerification {
    pub origin: Origin,
    pub region: Option<Region>,
    pub secret: NewSecret,
    pub code_length: CodeLength,
    /// `None` stands for the default template.
    pub template: Option<TemplateKey>,
    pub metadata: Option<Metadata>,
    pub api_key: Option<ApiKeyId>,
}

/// The stored part of a new code.
#[derive(Debug, Clone)]
pub struct NewSecret {
    pub pepper: KeyId,
    pub seed: Seed,
    pub code_hash: CodeHash,
}

impl Verification {
    /// Returns a verification as it is right after it began.
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
            extra_sends: 0,
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

    /// Returns the recipient of its messages, as far as it is stored.
    pub(crate) fn recipient(&self) -> Recipient {
        let Self { phone, region, .. } = self;
        if self.origin == Origin::Api && region.is_none() {
            return Recipient::Unreadable(phone.clone());
        }
        let kind = NumberType::Unknown;
        Recipient::Number(Number { phone: phone.clone(), region: *region, kind })
    }

    /// Returns the number of messages that callers asked for. It decides when the next one may be sent.
    pub fn asked_sends(&self) -> u8 {
        self.sends.saturating_sub(self.extra_sends)
    }

    /// Whether the verification is of a test number.
    pub fn is_test(&self) -> bool {
        self.origin == Origin::Test
    }

    /// Returns the whole time to live.
    pub fn ttl(&self) -> Duration {
        self.expires_at.duration_since(self.created_at).unwrap_or_default()
    }

    /// Returns the time to live that remained when this was read.
    pub fn good_for(&self) -> Duration {
        self.expires_at.duration_since(self.read_at).unwrap_or_default()
    }

    /// Returns the time between the acceptance of the latest message that a caller asked for and the read.
    pub fn since_sent(&self) -> Duration {
        self.read_at.duration_since(self.sent_at).unwrap_or_default()
    }
}
