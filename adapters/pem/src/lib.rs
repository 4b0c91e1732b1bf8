//! Certificates and private keys in PEM files. The adapters that speak TLS read them with this crate.
//!
//! An error is a phrase for the operator. It names the file and never shows its content.

use std::{path::Path, time::SystemTime};

use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

/// One of the two files of a certificate with its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFile {
    Certificate,
    Key,
}

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

/// Reads a certificate, with those of authorities behind it, and its key. Returns every problem, each
/// with the file that has it.
pub fn read_pair(
    certificate: &Path,
    key: &Path,
) -> Result<CertifiedKey, Vec<(CertificateFile, String)>> {
    let in_certificate = |problem| (CertificateFile::Certificate, problem);
    let in_key = |problem| (CertificateFile::Key, problem);
    let (chain, pem) = match (read_certificates(certificate), read_key(key)) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => {
            let problems = [chain.err().map(in_certificate), key.err().map(in_key)];
            return Err(problems.into_iter().flatten().collect());
        }
    };
    let damaged = || format!("{}: a certificate is damaged", certificate.display());
    let certified = public_key(&chain[0]).ok_or_else(|| vec![in_certificate(damaged())])?;
    let pair = any_supported_type(&pem)
        .map(|key| CertifiedKey::new(chain, key))
        .map_err(|error| vec![in_key(format!("{}: {error}", key.display()))])?;
    // rustls compares them, too, but cannot read certificates of version 1.
    if pair.key.public_key().is_some_and(|own| *own != *certified) {
        return Err(vec![in_key("is not the key of the certificate".to_owned())]);
    }
    Ok(pair)
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(certificate).ok()?;
    certificate.tbs_certificate().subject_public_key_info().to_der().ok()
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
