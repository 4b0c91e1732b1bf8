//! Beginning, resending, looking at and canceling a verification.

use application::{
    Caller, CancelError, ResendError, StartError, StartRequest,
    ports::{AnswerClaim, Answers, ApiKeys, Outbox, Verifications},
};
use axum::http::StatusCode;
use domain::{CodeLength, NumberRefused, VerificationId};
use rand_core::CryptoRng;
use serde_json::json;

use super::{
    Asked, Surface,
    answer::Reply,
    body::{self, Recipient, Start},
    ended,
};
use crate::{
    api::trace,
    limits,
    problem::{Problem, ProblemKind},
};

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
        let mut request = self.start_request(start, asked)?;
        request.caller.claim = claim;
        let caller = request.caller.clone();
        match self.v1.start.execute(request).await {
            Ok(history) => {
                let pacing = &self.settings.pacing;
                let reply = Reply::verification(StatusCode::ACCEPTED, &history, pacing);
                Ok(reply.located(&history.verification))
            }
            Err(StartError::Limited(violations)) => {
                Err(limits::exceeded(&violations, limits::of_send(&self.settings.limits, &caller)))
            }
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
            Ok(history) => {
                let pacing = &self.settings.pacing;
                Ok(Reply::verification(StatusCode::ACCEPTED, &history, pacing))
            }
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

    pub(super) async fn find(&self, id: VerificationId) -> Result<Reply, Problem> {
        match self.v1.find.execute(id).await {
            Ok(Some(history)) => {
                Ok(Reply::verification(StatusCode::OK, &history, &self.settings.pacing))
            }
            Ok(None) => Err(ProblemKind::NotFound.into()),
            Err(error) => Err(self.unavailable(&error)),
        }
    }

    pub(super) async fn cancel(&self, id: VerificationId) -> Result<Reply, Problem> {
        match self.v1.cancel.execute(id).await {
            Ok(history) => Ok(Reply::verification(StatusCode::OK, &history, &self.settings.pacing)),
            Err(CancelError::Unknown) => Err(ProblemKind::NotFound.into()),
            Err(CancelError::AlreadyApproved) => Err(ProblemKind::AlreadyApproved.into()),
            Err(CancelError::Expired) => Err(ended(domain::VerificationStatus::Expired)),
            Err(error @ (CancelError::Full | CancelError::Unavailable(_))) => {
                Err(self.unavailable(&error))
            }
        }
    }

    /// What the use case is asked for, if anything is sent to such a number at all.
    fn start_request(&self, start: Start, asked: &Asked) -> Result<StartRequest, Problem> {
        let settings = &self.settings;
        let code_length = start.code_length.unwrap_or(settings.code_length);
        let (phone, region, code_length, test_code) = match start.recipient {
            Recipient::Number(number) => {
                settings.numbers.check(number.region, number.kind).map_err(refused)?;
                (number.phone, number.region, code_length, None)
            }
            Recipient::Test(phone, code) => {
                let length = CodeLength::try_from(code.as_str().len()).unwrap_or(code_length);
                (phone, None, length, Some(code))
            }
        };
        let template =
            settings.templates.resolve(start.template.as_deref(), start.locale.as_deref());
        Ok(StartRequest {
            phone,
            region,
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
        })
    }
}

fn refused(rule: NumberRefused) -> Problem {
    let kind = match rule {
        NumberRefused::Region => ProblemKind::RegionNotAllowed,
        NumberRefused::Type => ProblemKind::NumberTypeNotAllowed,
    };
    Problem::new(kind)
        .with("errors", json!([{ "pointer": "/phone", "detail": kind.meaning().detail }]))
}
