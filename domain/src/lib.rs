//! Values and rules of verification codes: how they are issued, sent and checked.
//!
//! This crate does not wait, read a clock, do IO or know a wire format. Time and randomness are
//! arguments. Each adapter converts these types to and from its own format. Cryptography is pure
//! computation, so it belongs here.

mod carried;
mod channel;
mod code;
mod gateway;
mod gsm7;
mod guard;
mod health;
mod key;
mod limits;
mod message;
mod money;
mod number;
mod phone;
mod secret;
mod signing;
mod template;
mod text;
mod verification;

pub use carried::{CannotOpen, CarriedCode, InvalidCarriedCode, Opened, PayloadKeys, SealedCode};
pub use channel::Channel;
pub use code::{Code, CodeLength, InvalidCode, InvalidCodeLength};
pub use gateway::{GatewayName, InvalidGatewayName};
pub use gsm7::{Encoding, Measure, push_septets, septets};
pub use guard::{
    Activity, GuardCount, GuardMode, GuardRule, GuardScope, GuardTest, InvalidGuardRule, Levels,
    Rolling, World,
};
pub use health::{Comparison, FACTOR_PAUSE, Factor, HealthCounts, Lack, RegionalGateway};
pub use key::{ApiKeyHash, ApiKeyId, ApiKeyText, InvalidApiKey, Scope, Scopes};
pub use limits::{
    Counter, CustomLimit, InvalidCustomLimit, InvalidWindows, Policy, PolicyName, SendLimits,
    SendOf, Window, Windows,
};
pub use message::{Message, MessageId, Validity};
pub use money::{Amount, Budget, InvalidAmount, Prices};
pub use number::{
    InvalidNumberType, InvalidRegion, Number, NumberRefused, NumberRules, NumberType, Recipient,
    Region, Regions,
};
pub use phone::{InvalidPhoneNumber, PhoneNumber};
pub use secret::{
    CodeHash, InvalidKeyId, InvalidKeys, KeyId, Pepper, Peppers, Seed, digest, draw_key,
};
pub use signing::{EventSecrets, InvalidEventSecrets};
pub use template::{InvalidSmsTemplate, SmsTemplate};
pub use text::{
    AppHash, Costly, InvalidAppHash, InvalidTemplate, InvalidTemplateKey, InvalidWebOtpHost, Lint,
    TemplateKey, Templates, TextOptions, WebOtpHost,
};
pub use verification::{
    ATTEMPTS, InvalidPacing, InvalidVerificationId, Metadata, Origin, Pacing, UnknownWord,
    VerificationId, VerificationStatus,
};
