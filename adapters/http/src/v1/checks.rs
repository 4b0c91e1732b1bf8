//! Trying a code.

use application::{
    CheckError, Checked, CodeOf,
    ports::{AnswerClaim, Answers, ApiKeys, Outbox, Verifications},
};
use axum::http::StatusCode;
use domain::{Code, VerificationId};
use rand_core::CryptoRng;

use super::{
    Asked, Surface,
    answer::{Reply, Tried},
    body, ended, limits,
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
    pub(super) async fn check(
        &self,
        id: VerificationId,
        asked: &Asked,
        claim: Option<AnswerClaim>,
    ) -> Result<Reply, Problem> {
        let code = body::check(asked.json()?)?;
        self.try_code(CodeOf::Verification(id), &code, claim).await
    }

    pub(super) async fn check_by_phone(
        &self,
        asked: &Asked,
        claim: Option<AnswerClaim>,
    ) -> Result<Reply, Problem> {
        let (phone, code) = body::check_by_phone(asked.json()?, &self.settings)?;
        self.try_code(CodeOf::Phone(phone), &code, claim).await
    }

    async fn try_code(
        &self,
        of: CodeOf,
        code: &Code,
        claim: Option<AnswerClaim>,
    ) -> Result<Reply, Problem> {
        match self.v1.check.execute(of, code, claim.as_ref()).await {
            Ok(Checked::Approved) => Ok(Reply::json(StatusCode::OK, &Tried::RIGHT)),
            Ok(Checked::Wrong { attempts_left }) => {
                Ok(Reply::json(StatusCode::OK, &Tried::wrong(attempts_left)))
            }
            Err(CheckError::Unknown) => Err(ProblemKind::NotFound.into()),
            Err(CheckError::AlreadyApproved) => Err(ProblemKind::AlreadyApproved.into()),
            Err(CheckError::Gone(status)) => Err(ended(status)),
            Err(CheckError::Limited(violations)) => {
                let policies = self.settings.limits.check.policies("check");
                Err(limits::exceeded(&violations, policies))
            }
            Err(error @ (CheckError::Full | CheckError::Unavailable(_))) => {
                Err(self.unavailable(&error))
            }
        }
    }
}
