//! The operator's page, at `/operator` of the metrics port. It shows the state of the service, and
//! the operator can act on it.
//!
//! `access` decides who may see it, and `html` writes it. [`Operator`] supplies its data.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{
        StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use domain::{GatewayName, MessageId, VerificationId};
use maud::Markup;
use tokio::time::timeout;

use self::{
    access::{Access, guard},
    html::Here,
};
use crate::{
    OperatorPassword, Readiness,
    error::ApiError,
    request::{Unread, read_within},
    server::Caller,
};

mod access;
mod html;

#[cfg(test)]
mod tests;

/// A form has one short field.
const MAX_BODY: usize = 4 * 1024;

const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a request waits for the end of its action. The action itself has no limit.
const ACTION: Duration = Duration::from_secs(15);

/// Supplies the data of the page, and carries out its actions.
///
/// An answer contains no code, no full phone number and no secret. Each call except `act` ends
/// within seconds, even if the database does not answer.
pub trait Operator: Send + Sync + 'static {
    /// Returns the state of the service.
    fn status(&self) -> impl Future<Output = Result<Status, OperatorError>> + Send;

    /// Returns the state of the gateways, with their actions.
    fn gateways(&self) -> impl Future<Output = Result<Vec<Table>, OperatorError>> + Send;

    /// Returns the story of a verification or a message.
    fn message(&self, id: &str) -> impl Future<Output = Result<Found, OperatorError>> + Send;

    /// Returns the stories of the newest messages to a phone.
    fn messages_to(&self, phone: &str)
    -> impl Future<Output = Result<Found, OperatorError>> + Send;

    /// Returns the oldest dead letters, with their actions.
    fn dead_letters(&self) -> impl Future<Output = Result<Table, OperatorError>> + Send;

    /// Returns the details that the operator sees before confirming an action.
    fn before(
        &self,
        action: &Action,
    ) -> impl Future<Output = Result<Details, OperatorError>> + Send;

    /// Carries out an action. Returns its result.
    fn act(&self, action: Action) -> impl Future<Output = Result<String, OperatorError>> + Send;
}

/// The reason why a page has no data, or why an action failed. The page shows the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorError {
    /// The text is neither an id nor a phone.
    Invalid(String),
    /// Nothing has this id or this phone number.
    Unknown(String),
    /// The action was not carried out.
    Refused(String),
    /// The action is still running.
    Unfinished(String),
    /// Other reads or actions took too long. Nothing was read or changed.
    Busy(String),
    /// The database could not be read, or not in time.
    Unavailable(String),
}

/// Something that the operator can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Reads the record of a dead letter again.
    Retry(i64),
    /// Deletes a dead letter.
    Discard(i64),
    /// Takes a gateway out of service.
    Drain(GatewayName),
    /// Puts a gateway back into service.
    Undrain(GatewayName),
}

/// The state of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The time of the database.
    pub time: String,
    pub tables: Vec<Table>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub title: &'static str,
    /// The text that stands for an empty table.
    pub empty: &'static str,
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    None,
    Number(String),
    Text(String),
    /// The id of a message or a verification. The page links it to the story.
    Message(String),
    Actions(Vec<Action>),
}

/// Properties of one thing, by name.
pub type Details = Vec<(&'static str, Cell)>;

/// The result of a search for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub stories: Vec<Story>,
    /// How many rows the search read, and how to find more.
    pub note: Option<String>,
}

/// The story of a verification, or of a message without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// Its id.
    pub title: Cell,
    pub details: Details,
    pub steps: Table,
}

struct Desk<O> {
    operator: O,
    readiness: Readiness,
}

type Shared<O> = State<Arc<Desk<O>>>;

/// The router of the page, for callers who show the password.
pub fn router<O: Operator>(
    operator: O,
    readiness: Readiness,
    password: OperatorPassword,
) -> Router {
    let retry = ask::<O>(|id| id.parse().ok().map(Action::Retry));
    let discard = ask::<O>(|id| id.parse().ok().map(Action::Discard));
    let drain = ask::<O>(|name| name.parse().ok().map(Action::Drain));
    let undrain = ask::<O>(|name| name.parse().ok().map(Action::Undrain));
    Router::new()
        .route("/operator", get(status::<O>))
        .route("/operator/messages", get(search).post(find::<O>))
        .route("/operator/messages/{id}", get(message::<O>))
        .route("/operator/dead-letters", get(dead_letters::<O>))
        .route("/operator/dead-letters/{id}/retry", retry)
        .route("/operator/dead-letters/{id}/discard", discard)
        .route("/operator/gateways", get(gateways::<O>))
        .route("/operator/gateways/{name}/drain", drain)
        .route("/operator/gateways/{name}/undrain", undrain)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .route_layer(from_fn_with_state(Arc::new(Access::new(password)), guard))
        .with_state(Arc::new(Desk { operator, readiness }))
}

impl Action {
    fn path(&self) -> String {
        match self {
            Self::Retry(id) => format!("/operator/dead-letters/{id}/retry"),
            Self::Discard(id) => format!("/operator/dead-letters/{id}/discard"),
            Self::Drain(name) => format!("/operator/gateways/{name}/drain"),
            Self::Undrain(name) => format!("/operator/gateways/{name}/undrain"),
        }
    }
}

/// `GET` asks the operator to confirm the action, and `POST` carries it out.
fn ask<O: Operator>(parse: fn(&str) -> Option<Action>) -> MethodRouter<Arc<Desk<O>>> {
    let confirm = async move |State(desk): Shared<O>, Path(of): Path<String>| {
        let Some(action) = parse(&of) else { return ApiError::NotFound.into_response() };
        let here = Here::of(&action);
        match desk.operator.before(&action).await {
            Ok(details) => page(html::confirm(&action, &details)),
            Err(error) => failure(here, &error),
        }
    };
    let act = async move |State(desk): Shared<O>, Path(of): Path<String>, request: Request| {
        let Some(action) = parse(&of) else { return ApiError::NotFound.into_response() };
        let here = Here::of(&action);
        // A separate task goes on, and logs the result, if the client disconnects.
        let acted = tokio::spawn(carry_out(desk, action, Caller::of(&request)));
        match timeout(ACTION, acted).await {
            Ok(Ok(Ok(done))) => page(html::done(here, &done)),
            Ok(Ok(Err(error))) => failure(here, &error),
            Ok(Err(error)) => {
                if error.is_panic() {
                    tracing::error!("an action of the operator panicked");
                }
                ApiError::Internal.into_response()
            }
            Err(_) => failure(here, &unfinished()),
        }
    };
    get(confirm).post(act)
}

/// Carries out an action, and logs its result.
async fn carry_out<O: Operator>(
    desk: Arc<Desk<O>>,
    action: Action,
    caller: Option<IpAddr>,
) -> Result<String, OperatorError> {
    let caller = caller.map(tracing::field::display);
    let what = action.to_string();
    let acted = desk.operator.act(action).await;
    match &acted {
        Ok(done) => {
            tracing::info!(client.address = caller, %what, done, "acted for the operator");
        }
        Err(error) => {
            let reason = error.text();
            tracing::warn!(client.address = caller, %what, reason, "did not act for the operator");
        }
    }
    acted
}

fn unfinished() -> OperatorError {
    OperatorError::Unfinished(format!(
        "it is still running after {} s: check again later",
        ACTION.as_secs()
    ))
}

async fn status<O: Operator>(State(desk): Shared<O>) -> Response {
    let status = desk.operator.status().await;
    let code = status.as_ref().err().map_or(StatusCode::OK, OperatorError::code);
    (code, page(html::status(&desk.readiness, status.as_ref()))).into_response()
}

async fn gateways<O: Operator>(State(desk): Shared<O>) -> Response {
    match desk.operator.gateways().await {
        Ok(tables) => page(html::gateways(&tables)),
        Err(error) => failure(Here::Gateways, &error),
    }
}

async fn dead_letters<O: Operator>(State(desk): Shared<O>) -> Response {
    match desk.operator.dead_letters().await {
        Ok(table) => page(html::dead_letters(&table)),
        Err(error) => failure(Here::DeadLetters, &error),
    }
}

async fn search() -> Response {
    page(html::search(None))
}

/// Redirects a search for an id to the page of that id. The result for a phone has no URL of its
/// own, so that no number gets into a URL, the history of a browser, or a log.
async fn find<O: Operator>(State(desk): Shared<O>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let read = read_within(BODY_TIMEOUT, body, &parts.headers, MAX_BODY, true).await;
    let body = match read {
        Ok(content) => content.bytes,
        Err(Unread::TooLate) => return ApiError::BodyTimeout.into_response(),
        Err(_) => return ApiError::InvalidBody.into_response(),
    };
    let mut fields = form_urlencoded::parse(&body);
    let about = fields.find(|(name, _)| name == "about").map(|(_, value)| value);
    let about = about.as_deref().unwrap_or_default().trim();
    if about.parse::<VerificationId>().is_ok() || about.parse::<MessageId>().is_ok() {
        let address = format!("/operator/messages/{about}");
        return (StatusCode::SEE_OTHER, [(LOCATION, address)]).into_response();
    }
    found(&desk.operator.messages_to(about).await)
}

async fn message<O: Operator>(State(desk): Shared<O>, Path(id): Path<String>) -> Response {
    found(&desk.operator.message(&id).await)
}

fn found(found: &Result<Found, OperatorError>) -> Response {
    let code = found.as_ref().err().map_or(StatusCode::OK, OperatorError::code);
    (code, page(html::search(Some(found.as_ref())))).into_response()
}

fn failure(here: Here, error: &OperatorError) -> Response {
    (error.code(), page(html::failure(here, error))).into_response()
}

fn page(markup: Markup) -> Response {
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8")];
    (headers, Body::from(markup.into_string())).into_response()
}

impl OperatorError {
    fn code(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Refused(_) => StatusCode::CONFLICT,
            Self::Unfinished(_) | Self::Busy(_) | Self::Unavailable(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Invalid(text)
            | Self::Unknown(text)
            | Self::Refused(text)
            | Self::Unfinished(text)
            | Self::Busy(text)
            | Self::Unavailable(text) => text,
        }
    }
}
