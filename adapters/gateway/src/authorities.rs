//! The authorities that a client trusts.

use std::{path::Path, sync::Arc};

use hyper_rustls::ConfigBuilderExt;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// The authorities that sign the certificates of servers.
#[derive(Debug, Clone, Default)]
pub(crate) enum Authorities {
    /// The authorities that browsers trust.
    #[default]
    Public,
    /// Only these authorities.
    Private(RootCertStore),
}

impl Authorities {
    /// Reads the certificates of private authorities from a PEM file. The error names the file.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let told = |problem: String| format!("{}: {problem}", path.display());
        let text = std::fs::read(path).map_err(|error| told(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate =
                certificate.map_err(|error| told(format!("it is not a PEM file: {error}")))?;
            roots.add(certificate).map_err(|error| told(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(told("it contains no certificate".to_owned()));
        }
        Ok(Self::Private(roots))
    }

    /// Makes the settings of a TLS client without a certificate of its own.
    pub(crate) fn client_config(self) -> Result<ClientConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match self {
            Self::Public => builder.with_webpki_roots(),
            Self::Private(roots) => builder.with_root_certificates(roots),
        };
        Ok(builder.with_no_client_auth())
    }
}

#[cfg(test)]
mod tests;
