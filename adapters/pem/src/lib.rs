//! Certificates and private keys in PEM files. The adapters that speak TLS read them with this crate.
//!
//! An error is a phrase for the operator. It names the file and never shows its content.

use std::{path::Path, time::SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_cert::{Certificate, der::Decode};

/// Reads all certificates of a file, of which there must be one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let told = |problem: &str| format!("{}: {problem}", path.display());
    let text = std::fs::read(path).map_err(|error| told(&error.to_string()))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let read = read.map_err(|error| told(&format!("it is not a PEM file: {error}")))?;
    if read.is_empty() { Err(told("it contains no certificate")) } else { Ok(read) }
}

/// Reads the first private key of a file.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let told = |problem: &str| format!("{}: {problem}", path.display());
    let text = std::fs::read(path).map_err(|error| told(&error.to_string()))?;
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| told("it contains no private key in PEM that is not encrypted"))
}

/// Returns the phrase for a key that rustls does not take for its certificate.
pub fn no_pair(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "is not the key of the certificate".to_owned(),
        error => format!("cannot be used: {error}"),
    }
}

/// Returns the time at which the first of the certificates expires.
///
/// Certificates that cannot be parsed do not count. `None`: none of them can.
pub fn first_expiry(certificates: &[CertificateDer<'_>]) -> Option<SystemTime> {
    certificates.iter().filter_map(expiry).min()
}

fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let not_after = certificate.tbs_certificate().validity().not_after;
    SystemTime::UNIX_EPOCH.checked_add(not_after.to_unix_duration())
}

#[cfg(test)]
mod tests;
