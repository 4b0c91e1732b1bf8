//! The HTTP adapter: `/api`, `/v1`, the pages, metrics and health, and the server below them.

mod api;
mod auth;
mod docs;
mod error;
mod metrics;
mod monitoring;
mod numbering;
mod openmetrics;
mod operator;
mod page;
mod readiness;
mod request;
mod server;
#[cfg(test)]
mod testing;
mod v1;

pub use api::{ApiSettings, router};
pub use auth::{ApiAuth, InvalidToken, MetricsToken, OperatorPassword};
pub use docs::router as docs_router;
pub use metrics::{ApiMetrics, ConnectionMetrics};
pub use monitoring::metrics_router;
pub use numbering::{has_numbers, recipient};
pub use openmetrics::Exemplars;
pub use operator::{
    Action, Cell, Details, Found, Operator, OperatorError, Status, Story, Table,
    router as operator_router,
};
pub use page::router as page_router;
pub use readiness::Readiness;
pub use server::{
    CertificateFile, Hosts, InvalidHosts, InvalidProxies, Listeners, ServerCertificate,
    ServerLimits, ServerTls, TrustedProxies, serve,
};
pub use v1::{
    NoReceipts, ReceiptAnswer, ReceiptError, ReceiptGateway, ReceiptGateways, ReceiptRequest,
    UseCases, V1, V1Settings, receipts_router, v1_router,
};
