//! Beginning, resending, looking at and canceling a verification.

use application::{
    Caller, CancelError, ResendError, StartError, StartRequest,
    ports::{AnswerClaim, Answers, ApiKeys, History, Outbox, Verifications},
};
use axum::http::StatusCode;
use domain::{CodeLength, Number, NumberRefused, NumberType, Scope, VerificationId};
use rand_core::CryptoRng;
use serde_json::json;

use super::{
    Asked, Surface,
    answer::Reply,
    body::{self, Recipient, Start},
    ended, limits,
    problem::{Problem, ProblemKind},
};
use crate::request::trace;

impl<O, V, A, K, R> Surface<O, V, A, K, R>
where
    O: Outbox,
    V: Verifications,
    A: Answers,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    pub(super) async fn start(
        &self,
        asked: &Asked,
        claim: Option<AnswerClaim>,
    ) -> Result<Reply, Problem> {
        let start = body::start(asked.json()?, &self.settings)?;
        let mut request = self.start_request(start, asked);
        request.caller.claim = claim;
        let caller = request.caller.clone();
        match self.v1.start.execute(request).await {
            Ok(history) => {
                Ok(self.shown(StatusCode::ACCEPTED, &history, asked).located(&history.verification))
            }
            Err(StartError::Limited(violations)) => {
                Err(limits::exceeded(&violations, limits::of_send(&self.settings.limits, &caller)))
            }
            Err(StartError::Refused(rule)) => Err(refused(rule)),
            Err(StartError::Blocked) => Err(ProblemKind::AbnormalUsage.into()),
            Err(error @ (StartError::Full | StartError::Unavailable(_))) => {
                Err(self.unavailable(&error))
            }
        }
    }

    pub(super) async fn resend(
        &self,
        id: VerificationId,
        asked: &Asked,
        claim: Option<AnswerClaim>,
    ) -> Result<Reply, Problem> {
        let trace = trace(&asked.headers);
        let caller = Caller { api_key: asked.api_key, trace, claim, ..Caller::default() };
        match self.v1.resend.execute(id, &caller).await {
            Ok(history) => Ok(self.shown(StatusCode::ACCEPTED, &history, asked)),
            Err(ResendError::Unknown) => Err(ProblemKind::NotFound.into()),
            Err(ResendError::AlreadyApproved) => Err(ProblemKind::AlreadyApproved.into()),
            Err(ResendError::Gone(status)) => Err(ended(status)),
            Err(ResendError::Limited(violations)) => {
                Err(limits::exceeded(&violations, limits::of_send(&self.settings.limits, &caller)))
            }
            Err(ResendError::Blocked) => Err(ProblemKind::AbnormalUsage.into()),
            Err(error @ (ResendError::Full | ResendError::Unavailable(_))) => {
                Err(self.unavailable(&error))
            }
        }
    }

    pub(super) async fn find(&self, id: VerificationId, asked: &Asked) -> Result<Reply, Problem> {
        match self.v1.find.execute(id).await {
            Ok(Some(history)) => Ok(self.shown(StatusCode::OK, &history, asked)),
            Ok(None) => Err(ProblemKind::NotFound.into()),
            Err(error) => Err(self.unavailable(&error)),
        }
    }

    pub(super) async fn cancel(&self, id: VerificationId, asked: &Asked) -> Result<Reply, Problem> {
        match self.v1.cancel.execute(id).await {
            Ok(history) => Ok(self.shown(StatusCode::OK, &history, asked)),
            Err(CancelError::Unknown) => Err(ProblemKind::NotFound.into()),
            Err(CancelError::AlreadyApproved) => Err(ProblemKind::AlreadyApproved.into()),
            Err(CancelError::Expired) => Err(ended(domain::VerificationStatus::Expired)),
            Err(error @ (CancelError::Full | CancelError::Unavailable(_))) => {
                Err(self.unavailable(&error))
            }
        }
    }

    /// A verification as the caller may see it. Its metadata is for who may read, and for the key
    /// that it was begun with.
    fn shown(&self, status: StatusCode, history: &History, asked: &Asked) -> Reply {
        let began = history.verification.api_key;
        let may_read = asked
            .api_key
            .is_none_or(|key| began == Some(key) || self.v1.auth.allows(key, Scope::Read));
        Reply::verification(status, history, &self.settings.pacing, may_read)
    }

    /// What the use case is asked for.
    fn start_request(&self, start: Start, asked: &Asked) -> StartRequest {
        let settings = &self.settings;
        let code_length = start.code_length.unwrap_or(settings.code_length);
        let (number, code_length, test_code) = match start.recipient {
            Recipient::Number(number) => (number, code_length, None),
            Recipient::Test(phone, code) => {
                let length = CodeLength::try_from(code.as_str().len()).unwrap_or(code_length);
                let number = Number { phone, region: None, kind: NumberType::Unknown };
                (number, length, Some(code))
            }
        };
        let template =
            settings.templates.resolve(start.template.as_deref(), start.locale.as_deref());
        StartRequest {
            number,
            ttl: start.ttl.unwrap_or(settings.ttl),
            code_length,
            template,
            metadata: start.metadata,
            caller: Caller {
                ip: start.ip,
                custom: start.limits,
                api_key: asked.api_key,
                trace: trace(&asked.headers),
                claim: None,
            },
            test_code,
        }
    }
}

fn refused(rule: NumberRefused) -> Problem {
    let kind = match rule {
        NumberRefused::Region => ProblemKind::RegionNotAllowed,
        // A text that is no number does not get as far as this on `/v1`.
        NumberRefused::Type | NumberRefused::Unreadable => ProblemKind::NumberTypeNotAllowed,
    };
    Problem::new(kind)
        .with("errors", json!([{ "pointer": "/phone", "detail": kind.meaning().detail }]))
}
