//! The connection to an SMSC, with or without TLS.

use std::{path::Path, sync::Arc};

use application::BoxError;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// The connection to an SMSC, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What a TLS connection needs.
pub(super) struct Tls {
    pub(super) connector: TlsConnector,
    /// The name that the certificate must have.
    pub(super) name: ServerName<'static>,
}

impl Tls {
    /// Trusts the authorities in the PEM file `ca`, or else those of Mozilla's list.
    pub(super) fn new(host: &str, ca: Option<&Path>) -> Result<Self, BoxError> {
        let roots = match ca {
            Some(path) => read_authorities(path)?,
            None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            connector: Arc::new(config).into(),
            name: ServerName::try_from(host.to_owned())?,
        })
    }
}

fn read_authorities(path: &Path) -> Result<RootCertStore, BoxError> {
    let told = |problem: String| BoxError::from(format!("{}: {problem}", path.display()));
    let text = std::fs::read(path).map_err(|error| told(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate =
            certificate.map_err(|error| told(format!("it is not a PEM file: {error}")))?;
        roots.add(certificate).map_err(|error| told(error.to_string()))?;
    }
    if roots.is_empty() { Err(told("it contains no certificate".to_owned())) } else { Ok(roots) }
}
