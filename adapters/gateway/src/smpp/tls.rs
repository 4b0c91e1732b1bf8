//! The connection to an SMSC, with or without TLS.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::authorities::Authorities;

/// The connection to an SMSC, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The settings of TLS connections.
pub(super) struct Tls {
    pub(super) connector: TlsConnector,
    /// The name that the certificate must have.
    pub(super) name: ServerName<'static>,
}

impl Tls {
    /// Fails if the host is neither a name nor an address.
    pub(super) fn new(host: &str, authorities: Authorities) -> Result<Self, String> {
        let config = authorities.client_config().map_err(|error| error.to_string())?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| "is not a name that a certificate can have".to_owned())?;
        Ok(Self { connector: Arc::new(config).into(), name })
    }
}
