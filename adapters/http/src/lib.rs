//! The HTTP side: the API, the metrics and health pages, and the server that both run on.

mod api;
mod auth;
mod docs;
mod error;
mod idempotency;
mod limits;
mod metrics;
mod numbering;
mod openapi;
mod operations;
mod page;
mod problem;
mod readiness;
mod server;
mod v1;

pub use api::{ApiSettings, router};
pub use auth::ApiAuth;
pub use docs::router as docs_router;
pub use metrics::{ApiMetrics, ConnectionMetrics};
pub use numbering::{has_numbers, recipient};
pub use operations::metrics_router;
pub use page::router as page_router;
pub use readiness::Readiness;
pub use server::{Hosts, InvalidHosts, Listeners, ServerLimits, serve};
pub use v1::{V1, V1Settings, v1_router};
