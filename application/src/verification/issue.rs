use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use domain::{
    ApiKeyId, CarriedCode, Code, CodeLength, Counter, Message, MessageId, Metadata, Origin, Pepper,
    PhoneNumber, Region, Seed, TemplateKey, VerificationId, Windows,
};
use rand_core::CryptoRng;

use crate::{
    Keys, TraceParent, Vault, VaultClosed,
    ports::{NewSecret, NewSend, NewTest, NewVerification, Storing, Verification},
};

/// The clock that ids begin with. No decision depends on it.
pub type Clock = fn() -> SystemTime;

/// Issues codes: derives, hashes and seals them.
pub(crate) struct Issuer<R> {
    clock: Clock,
    rng: Mutex<R>,
    vault: Vault,
}

/// Which code a resend has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResendPolicy {
    /// The code that the verification has.
    #[default]
    Same,
    /// A new code, which replaces the one before.
    New,
}

/// The values of a new verification.
#[derive(Debug, Clone)]
pub(crate) struct IssueRequest {
    /// The id, if it is given. Otherwise it is drawn.
    pub(crate) id: Option<VerificationId>,
    pub(crate) origin: Origin,
    pub(crate) phone: PhoneNumber,
    /// The form of the phone that the gateway receives, if it differs from `phone`.
    pub(crate) written: Option<PhoneNumber>,
    pub(crate) region: Option<Region>,
    pub(crate) ttl: Duration,
    pub(crate) code_length: CodeLength,
    pub(crate) template: Option<TemplateKey>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) api_key: Option<ApiKeyId>,
    pub(crate) trace: Option<TraceParent>,
    pub(crate) phone_limits: Windows,
    pub(crate) apart: bool,
    pub(crate) extra: Vec<Counter>,
}

/// The random values of one message.
struct Drawn {
    id: VerificationId,
    seed: Seed,
    nonce: [u8; 24],
    trace: TraceParent,
}

impl<R: CryptoRng> Issuer<R> {
    /// `rng` must be seeded from the operating system: ids, seeds and nonces are drawn from it.
    pub(crate) fn new(clock: Clock, rng: R, vault: Vault) -> Self {
        Self { clock, rng: Mutex::new(rng), vault }
    }

    /// Issues a verification: its id, its code and its first message.
    pub(crate) fn first(&self, request: IssueRequest) -> Result<NewSend, VaultClosed> {
        let pepper = self.vault.peppers()?.first();
        let Drawn { id, seed, nonce, trace } = self.draw();
        let id = request.id.unwrap_or(id);
        let code = pepper.derive(id, &seed, request.code_length);
        let (message, template) = (id.message(1), request.template.as_ref());
        let written = request.written.unwrap_or_else(|| request.phone.clone());
        let carried = self.carry(message, &written, &code, template, nonce)?;
        Ok(NewSend {
            message: Message { id: message, phone: written, code: carried },
            phone: request.phone,
            ttl: request.ttl,
            trace: request.trace.unwrap_or(trace),
            verification: NewVerification {
                origin: request.origin,
                region: request.region,
                secret: secret(pepper, id, seed, &code),
                code_length: request.code_length,
                template: request.template,
                metadata: request.metadata,
                api_key: request.api_key,
            },
            phone_limits: request.phone_limits,
            apart: request.apart,
            extra: request.extra,
            storing: Storing::default(),
        })
    }

    /// Issues the next message of a verification. Also returns the secret of its code if the code is
    /// new, because of the policy or because this process does not have the pepper of the old code.
    pub(crate) fn next(
        &self,
        verification: &Verification,
        policy: ResendPolicy,
    ) -> Result<(Message, Option<NewSecret>, TraceParent), VaultClosed> {
        let peppers = self.vault.peppers()?;
        let Drawn { seed, nonce, trace, .. } = self.draw();
        let Verification { id, code_length, .. } = *verification;
        let kept = verification.secret.as_ref().filter(|_| policy == ResendPolicy::Same);
        let kept = kept.and_then(|kept| Some((peppers.get(&kept.pepper)?, &kept.seed)));
        let (code, secret) = if let Some((pepper, seed)) = kept {
            (pepper.derive(id, seed, code_length), None)
        } else {
            let code = peppers.first().derive(id, &seed, code_length);
            let secret = secret(peppers.first(), id, seed, &code);
            (code, Some(secret))
        };
        Ok((self.message(verification, &code, nonce)?, secret, trace))
    }

    /// Issues the next message of a verification with the code that it has. Returns `None` if the code
    /// cannot be derived here, or if the verification has as many messages as it can have.
    pub(crate) fn again(
        &self,
        verification: &Verification,
    ) -> Result<Option<(Message, TraceParent)>, VaultClosed> {
        let peppers = self.vault.peppers()?;
        let Verification { id, code_length, sends, .. } = *verification;
        let Some(secret) = verification.secret.as_ref().filter(|_| sends < u8::MAX) else {
            return Ok(None);
        };
        let Some(pepper) = peppers.get(&secret.pepper) else { return Ok(None) };
        let Drawn { nonce, trace, .. } = self.draw();
        let code = pepper.derive(id, &secret.seed, code_length);
        Ok(Some((self.message(verification, &code, nonce)?, trace)))
    }

    /// Issues a verification of a test number, whose code is given.
    pub(crate) fn test(&self, request: IssueRequest, code: &Code) -> Result<NewTest, VaultClosed> {
        let pepper = self.vault.peppers()?.first();
        let Drawn { id, seed, .. } = self.draw();
        let id = request.id.unwrap_or(id);
        Ok(NewTest {
            id,
            phone: request.phone,
            ttl: request.ttl,
            verification: NewVerification {
                origin: Origin::Test,
                region: request.region,
                secret: secret(pepper, id, seed, code),
                code_length: request.code_length,
                template: request.template,
                metadata: request.metadata,
                api_key: request.api_key,
            },
        })
    }

    /// Makes the next message of a verification.
    fn message(
        &self,
        verification: &Verification,
        code: &Code,
        nonce: [u8; 24],
    ) -> Result<Message, VaultClosed> {
        let Verification { id, sends, phone, template, .. } = verification;
        let (message, phone) = (id.message(sends + 1), phone.clone());
        let code = self.carry(message, &phone, code, template.as_ref(), nonce)?;
        Ok(Message { id: message, phone, code })
    }

    fn draw(&self) -> Drawn {
        // A generator is consistent between two draws, so a panic elsewhere does not damage it.
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        Drawn {
            id: VerificationId::generate((self.clock)(), &mut *rng),
            seed: Seed::generate(&mut *rng),
            nonce,
            trace: TraceParent::generate(&mut *rng),
        }
    }

    fn carry(
        &self,
        message: MessageId,
        phone: &PhoneNumber,
        code: &Code,
        template: Option<&TemplateKey>,
        nonce: [u8; 24],
    ) -> Result<CarriedCode, VaultClosed> {
        let Keys { payload, .. } = self.vault.keys().ok_or(VaultClosed)?;
        Ok(match payload {
            Some(keys) => keys.seal(message, phone, code, template, nonce),
            None => CarriedCode::Clear { code: code.clone(), template: template.cloned() },
        })
    }
}

fn secret(pepper: &Pepper, id: VerificationId, seed: Seed, code: &Code) -> NewSecret {
    NewSecret { pepper: pepper.id().clone(), code_hash: pepper.hash(id, code), seed }
}

impl<R> fmt::Debug for Issuer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("vault", &self.vault).finish_non_exhaustive()
    }
}
