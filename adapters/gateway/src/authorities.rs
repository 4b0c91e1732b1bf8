//! The authorities that a client trusts.

use std::{path::Path, sync::Arc};

use adapters_pem::read_certificates;
use hyper_rustls::ConfigBuilderExt;
use rustls::{ClientConfig, RootCertStore};

/// The authorities that sign the certificates of servers.
#[derive(Debug, Clone, Default)]
pub enum Authorities {
    /// The authorities that browsers trust.
    #[default]
    Public,
    /// Only these authorities.
    Private(RootCertStore),
}

impl Authorities {
    /// Reads the certificates of private authorities from a PEM file. The error names the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(path)? {
            roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
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
