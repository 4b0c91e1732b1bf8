//! The HTTP side: the API, the metrics and health pages, and the server that both run on.

mod api;
mod error;
mod metrics;
mod operations;
mod readiness;
mod server;

pub use api::{ApiSettings, router};
pub use metrics::ApiMetrics;
pub use operations::metrics_router;
pub use readiness::Readiness;
pub use server::{ServerLimits, serve};
