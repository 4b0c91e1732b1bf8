//! The use cases that `/v1` calls.

use std::sync::Arc;

use application::{
    AnswerError, AnswerOnce, Authorize, AuthorizeError, Caller, CancelError, CancelVerification,
    CheckCode, CheckError, Checked, CodeOf, FindVerification, NoteReceipt, Repeatable, ResendError,
    ResendVerification, StartError, StartRequest, StartVerification, TraceParent,
    ports::{
        Answer, AnswerClaim, Answers, ApiKeys, Begun, History, Outbox, Receipt, StoreError,
        Verifications,
    },
};
use axum::http::HeaderMap;
use domain::{ApiKeyId, Code, MessageId, Scope, VerificationId};
use futures_util::future::BoxFuture;
use rand_core::CryptoRng;

use crate::auth;

/// The use cases of `/v1`, on the adapters that `main` chose.
#[derive(Debug)]
pub struct V1<O, V, A, K, R> {
    pub start: StartVerification<O, V, R>,
    pub resend: ResendVerification<V, R>,
    pub check: CheckCode<V>,
    pub find: FindVerification<V>,
    pub cancel: CancelVerification<V>,
    pub receipts: NoteReceipt<V>,
    pub answers: AnswerOnce<A>,
    pub auth: Arc<Authorize<K>>,
}

/// [`V1`] without the types of its adapters.
///
/// With it the handlers are plain functions, an endpoint can hold a pointer to its own, and the
/// binaries do not compile them again for their adapters. A call costs one allocation.
pub trait UseCases: Send + Sync + 'static {
    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<History, StartError>>;

    fn resend<'a>(
        &'a self,
        id: VerificationId,
        caller: &'a Caller,
    ) -> BoxFuture<'a, Result<History, ResendError>>;

    fn check<'a>(
        &'a self,
        of: CodeOf,
        code: &'a Code,
        claim: Option<&'a AnswerClaim>,
    ) -> BoxFuture<'a, Result<Checked, CheckError>>;

    fn find(&self, id: VerificationId) -> BoxFuture<'_, Result<Option<History>, StoreError>>;

    fn cancel(&self, id: VerificationId) -> BoxFuture<'_, Result<History, CancelError>>;

    fn note_receipt(
        &self,
        message: MessageId,
        receipt: Receipt,
        request: Option<TraceParent>,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    fn authorize<'a>(
        &'a self,
        headers: &'a HeaderMap,
        scope: Scope,
    ) -> BoxFuture<'a, Result<ApiKeyId, AuthorizeError>>;

    fn allows(&self, key: ApiKeyId, scope: Scope) -> bool;

    fn begin<'a>(
        &'a self,
        request: Repeatable<'a>,
        body: &'a [u8],
    ) -> BoxFuture<'a, Result<Begun, AnswerError>>;

    fn done<'a>(
        &'a self,
        claim: &'a AnswerClaim,
    ) -> BoxFuture<'a, Result<Option<VerificationId>, AnswerError>>;

    fn keep<'a>(
        &'a self,
        claim: &'a AnswerClaim,
        answer: &'a Answer,
    ) -> BoxFuture<'a, Result<(), AnswerError>>;

    fn forget<'a>(&'a self, claim: &'a AnswerClaim) -> BoxFuture<'a, Result<(), AnswerError>>;

    fn give_up<'a>(&'a self, claim: &'a AnswerClaim) -> BoxFuture<'a, Result<(), AnswerError>>;
}

impl<O, V, A, K, R> UseCases for V1<O, V, A, K, R>
where
    O: Outbox,
    V: Verifications,
    A: Answers,
    K: ApiKeys,
    R: CryptoRng + Send + 'static,
{
    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<History, StartError>> {
        Box::pin(self.start.execute(request))
    }

    fn resend<'a>(
        &'a self,
        id: VerificationId,
        caller: &'a Caller,
    ) -> BoxFuture<'a, Result<History, ResendError>> {
        Box::pin(self.resend.execute(id, caller))
    }

    fn check<'a>(
        &'a self,
        of: CodeOf,
        code: &'a Code,
        claim: Option<&'a AnswerClaim>,
    ) -> BoxFuture<'a, Result<Checked, CheckError>> {
        Box::pin(self.check.execute(of, code, claim))
    }

    fn find(&self, id: VerificationId) -> BoxFuture<'_, Result<Option<History>, StoreError>> {
        Box::pin(self.find.execute(id))
    }

    fn cancel(&self, id: VerificationId) -> BoxFuture<'_, Result<History, CancelError>> {
        Box::pin(self.cancel.execute(id))
    }

    fn note_receipt(
        &self,
        message: MessageId,
        receipt: Receipt,
        request: Option<TraceParent>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.receipts.execute(message, receipt, request))
    }

    fn authorize<'a>(
        &'a self,
        headers: &'a HeaderMap,
        scope: Scope,
    ) -> BoxFuture<'a, Result<ApiKeyId, AuthorizeError>> {
        Box::pin(auth::caller(&self.auth, headers, scope))
    }

    fn allows(&self, key: ApiKeyId, scope: Scope) -> bool {
        self.auth.allows(key, scope)
    }

    fn begin<'a>(
        &'a self,
        request: Repeatable<'a>,
        body: &'a [u8],
    ) -> BoxFuture<'a, Result<Begun, AnswerError>> {
        Box::pin(self.answers.begin(request, body))
    }

    fn done<'a>(
        &'a self,
        claim: &'a AnswerClaim,
    ) -> BoxFuture<'a, Result<Option<VerificationId>, AnswerError>> {
        Box::pin(self.answers.done(claim))
    }

    fn keep<'a>(
        &'a self,
        claim: &'a AnswerClaim,
        answer: &'a Answer,
    ) -> BoxFuture<'a, Result<(), AnswerError>> {
        Box::pin(self.answers.keep(claim, answer))
    }

    fn forget<'a>(&'a self, claim: &'a AnswerClaim) -> BoxFuture<'a, Result<(), AnswerError>> {
        Box::pin(self.answers.forget(claim))
    }

    fn give_up<'a>(&'a self, claim: &'a AnswerClaim) -> BoxFuture<'a, Result<(), AnswerError>> {
        Box::pin(self.answers.give_up(claim))
    }
}
