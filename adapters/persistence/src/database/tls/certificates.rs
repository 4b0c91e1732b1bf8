//! Verifies the certificates of servers as libpq and OpenSSL do.
//!
//! The verifier of rustls refuses certificates that follow PostgreSQL's manual and that libpq
//! accepts: certificates of version 1, a self-signed certificate that is its own root, and a name
//! that is only in the common name. It also accepts an intermediate authority as a root, which
//! libpq does not. The cryptography comes from rustls.
//!
//! This is one file, because the search for a chain and the checks of a chain are one verification.

use std::{net::IpAddr, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use x509_cert::{
    Certificate, Version,
    der::{
        Decode, Encode, Reader, SliceReader,
        asn1::{AnyRef, ObjectIdentifier},
    },
    ext::pkix::{
        BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
        name::{DirectoryString, GeneralName},
    },
};

/// Parsed certificates.
#[derive(Debug, Clone, Default)]
pub(super) struct Certificates(Arc<Vec<Parsed>>);

/// Verifies the certificate of a server.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: every certificate is accepted.
    roots: Option<Certificates>,
    /// The name that the certificate must have.
    host: Option<String>,
}

#[derive(Debug)]
struct Parsed {
    der: CertificateDer<'static>,
    /// The part of the certificate that the issuer signs.
    signed: Vec<u8>,
    certificate: Certificate,
    /// The algorithm of the signature, in the form that rustls compares.
    signature_algorithm: Vec<u8>,
    key_algorithm: Vec<u8>,
}

impl Certificates {
    pub(super) fn parse(certificates: &[CertificateDer<'_>]) -> Result<Self, String> {
        let parsed: Result<Vec<_>, _> = certificates.iter().map(Parsed::new).collect();
        Ok(Self(Arc::new(parsed.map_err(|error| error.to_string())?)))
    }

    /// Parses the certificates that can be read, and skips the rest.
    pub(super) fn parse_readable(certificates: &[CertificateDer<'_>]) -> Self {
        Self(Arc::new(certificates.iter().filter_map(|it| Parsed::new(it).ok()).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Parsed {
    fn new(der: &CertificateDer<'_>) -> x509_cert::der::Result<Self> {
        let contents = |der: Vec<u8>| AnyRef::from_der(&der).map(|it| it.value().to_vec());
        let certificate = Certificate::from_der(der)?;
        let signed = {
            let whole = AnyRef::from_der(der)?;
            SliceReader::new(whole.value())?.tlv_bytes()?.to_vec()
        };
        let key = certificate.tbs_certificate().subject_public_key_info();
        Ok(Self {
            der: der.clone().into_owned(),
            signed,
            signature_algorithm: contents(certificate.signature_algorithm().to_der()?)?,
            key_algorithm: contents(key.algorithm.to_der()?)?,
            certificate,
        })
    }

    fn key(&self) -> &[u8] {
        self.certificate.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes()
    }

    fn is_self_issued(&self) -> bool {
        let it = self.certificate.tbs_certificate();
        it.issuer() == it.subject()
    }

    /// Returns an extension if the certificate has it. Fails if it cannot be read.
    fn extension<'a, T: Decode<'a> + x509_cert::der::oid::AssociatedOid>(
        &'a self,
    ) -> Result<Option<T>, Error> {
        let found = self.certificate.tbs_certificate().get_extension::<T>();
        Ok(found.map_err(|_| refused(CertificateError::BadEncoding))?.map(|(_, it)| it))
    }
}

impl Verifier {
    pub(super) fn new(
        provider: &Arc<CryptoProvider>,
        roots: Option<Certificates>,
        host: Option<String>,
    ) -> Self {
        Self { provider: Arc::clone(provider), roots, host }
    }

    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }

    /// Returns whether the key of `issuer` made the signature of a certificate.
    fn signed(&self, certificate: &Parsed, issuer: &Parsed) -> bool {
        let signature = certificate.certificate.signature().raw_bytes();
        self.algorithms().all.iter().any(|algorithm| {
            algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
                && algorithm.public_key_alg_id().as_ref() == issuer.key_algorithm
                && algorithm.verify_signature(issuer.key(), &certificate.signed, signature).is_ok()
        })
    }

    /// Verifies the server's signature in the handshake with the key of its certificate.
    ///
    /// `curves` is the number of curves that an ECDSA scheme allows. TLS 1.2 allows all of them.
    /// TLS 1.3 allows only the first, which is the one in the scheme's name.
    fn verify_handshake(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        curves: usize,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate =
            Parsed::new(certificate).map_err(|_| refused(CertificateError::BadEncoding))?;
        let algorithms = self.algorithms().mapping.iter();
        let valid = algorithms
            .filter(|(scheme, _)| *scheme == signed.scheme)
            .flat_map(|(_, algorithms)| algorithms.iter().take(curves))
            .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == certificate.key_algorithm)
            .any(|algorithm| {
                algorithm.verify_signature(certificate.key(), message, signed.signature()).is_ok()
            });
        if valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(refused(CertificateError::BadSignature))
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let server = Parsed::new(end_entity).map_err(|_| refused(CertificateError::BadEncoding))?;
        let others = Certificates::parse_readable(intermediates);
        let mut search =
            Search { verifier: self, roots, others: &others, now, budget: 100, refused: None };
        let mut chain = vec![&server];
        if !search.complete(&mut chain) {
            let unknown = || refused(CertificateError::UnknownIssuer);
            return Err(search.refused.unwrap_or_else(unknown));
        }
        if chain.iter().any(|it| has(it, NAME_CONSTRAINTS)) {
            self.check_constraints(roots, end_entity, intermediates, server_name, now)?;
        }
        if let Some(host) = &self.host
            && !has_name(&server, host)?
        {
            return Err(refused(CertificateError::NotValidForName));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_handshake(message, cert, dss, usize::MAX)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !is_of_tls13(dss.scheme) {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        self.verify_handshake(message, cert, dss, 1)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

impl Verifier {
    /// Lets rustls check name constraints, because they are rare and occur in modern chains. rustls
    /// does not apply them to the common name, so the host must be among the alternative names.
    fn check_constraints(
        &self,
        roots: &Certificates,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.0.iter().map(|it| it.der.clone()));
        let provider = Arc::clone(&self.provider);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        match verifier.verify_server_cert(end_entity, intermediates, server_name, &[], now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.host.is_none() => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

/// Looks for a valid chain from a certificate to a root. A root is trusted and signs itself.
struct Search<'a> {
    verifier: &'a Verifier,
    roots: &'a Certificates,
    others: &'a Certificates,
    now: UnixTime,
    /// The number of signatures that may still be checked. A server could send certificates with
    /// very many possible chains.
    budget: usize,
    /// The reason why the first complete chain is not valid. The search continues after such a
    /// chain, because a renewed authority has the subject and the key of the expired one.
    refused: Option<Error>,
}

impl<'a> Search<'a> {
    /// Adds issuers to `chain` until it ends in a root and is valid.
    fn complete(&mut self, chain: &mut Vec<&'a Parsed>) -> bool
    where
        Self: 'a,
    {
        const LONGEST: usize = 10;
        let Some(last) = chain.last().copied() else { return false };
        if last.is_self_issued() && self.roots.0.iter().any(|root| root.der == last.der) {
            return self.checks(last, last) && self.is_valid(chain);
        }
        if chain.len() == LONGEST {
            return false;
        }
        // As OpenSSL, trusted certificates come first.
        let (roots, others) = (self.roots, self.others);
        for issuer in roots.0.iter().chain(others.0.iter()) {
            let issues = issuer.certificate.tbs_certificate().subject()
                == last.certificate.tbs_certificate().issuer();
            let used = chain.iter().any(|it| it.der == issuer.der);
            if issues && !used && self.checks(last, issuer) {
                chain.push(issuer);
                if self.complete(chain) {
                    return true;
                }
                chain.pop();
            }
        }
        false
    }

    fn is_valid(&mut self, chain: &[&Parsed]) -> bool {
        match check_chain(chain, self.now) {
            Ok(()) => true,
            Err(error) => {
                self.refused.get_or_insert(error);
                false
            }
        }
    }

    fn checks(&mut self, certificate: &Parsed, issuer: &Parsed) -> bool {
        let Some(left) = self.budget.checked_sub(1) else { return false };
        self.budget = left;
        self.verifier.signed(certificate, issuer)
    }
}

const NAME_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.30");
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// The critical extensions that are accepted, because this verifier checks them or they do not
/// apply to it: key identifiers, usage, names, basic and name constraints, revocation lists,
/// policies, extended usage.
const UNDERSTOOD: [&str; 11] = [
    "2.5.29.14",
    "2.5.29.15",
    "2.5.29.17",
    "2.5.29.19",
    "2.5.29.30",
    "2.5.29.31",
    "2.5.29.32",
    "2.5.29.33",
    "2.5.29.35",
    "2.5.29.36",
    "2.5.29.37",
];

/// Returns whether a TLS 1.3 handshake may be signed with this scheme. RFC 8446 §4.2.3 allows PKCS
/// #1 v1.5 only for certificates.
fn is_of_tls13(scheme: SignatureScheme) -> bool {
    use SignatureScheme as S;
    matches!(
        scheme,
        S::RSA_PSS_SHA256
            | S::RSA_PSS_SHA384
            | S::RSA_PSS_SHA512
            | S::ECDSA_NISTP256_SHA256
            | S::ECDSA_NISTP384_SHA384
            | S::ECDSA_NISTP521_SHA512
            | S::ED25519
    )
}

fn has(certificate: &Parsed, extension: ObjectIdentifier) -> bool {
    let extensions = certificate.certificate.tbs_certificate().extensions();
    extensions.is_some_and(|all| all.iter().any(|it| it.extn_id == extension))
}

/// Checks a chain from the server's certificate to a root. Its signatures are already verified.
fn check_chain(chain: &[&Parsed], now: UnixTime) -> Result<(), Error> {
    let mut authorities_below = 0;
    for (place, certificate) in chain.iter().enumerate() {
        let it = certificate.certificate.tbs_certificate();
        let validity = it.validity();
        if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
            return Err(refused(CertificateError::NotValidYet));
        }
        if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
            return Err(refused(CertificateError::Expired));
        }
        let unknown = it.extensions().into_iter().flatten().any(|extension| {
            let id = extension.extn_id.to_string();
            extension.critical && !UNDERSTOOD.contains(&&*id)
        });
        if unknown {
            return Err(refused(CertificateError::UnhandledCriticalExtension));
        }
        if let Some(ExtendedKeyUsage(purposes)) = certificate.extension()?
            && !purposes.iter().any(|purpose| [SERVER_AUTH, ANY_USAGE].contains(purpose))
        {
            return Err(refused(CertificateError::InvalidPurpose));
        }
        let usage = certificate.extension::<KeyUsage>()?.map(|usage| usage.0);
        if place == 0 {
            let for_tls =
                KeyUsages::DigitalSignature | KeyUsages::KeyEncipherment | KeyUsages::KeyAgreement;
            if usage.is_some_and(|usage| (usage & for_tls).is_empty()) {
                return Err(refused(CertificateError::InvalidPurpose));
            }
            continue;
        }
        let constraints = certificate.extension::<BasicConstraints>()?;
        let is_authority = match &constraints {
            Some(constraints) => constraints.ca,
            // A root of version 1 cannot have extensions.
            None => it.version() == Version::V1 && certificate.is_self_issued(),
        };
        let signs = usage.is_none_or(|usage| usage.contains(KeyUsages::KeyCertSign));
        let within = constraints
            .and_then(|it| it.path_len_constraint)
            .is_none_or(|longest| authorities_below <= usize::from(longest));
        if !is_authority || !signs || !within {
            return Err(refused(CertificateError::UnknownIssuer));
        }
        authorities_below += usize::from(!certificate.is_self_issued());
    }
    Ok(())
}

/// Returns whether a certificate has this name, as libpq compares names. It compares the
/// alternative names. If none of them has the kind of `host`, it compares the common name.
fn has_name(certificate: &Parsed, host: &str) -> Result<bool, Error> {
    let address = host.parse::<IpAddr>().ok();
    let mut of_its_kind = false;
    if let Some(SubjectAltName(names)) = certificate.extension()? {
        for name in &names {
            let (is_address, same) = match name {
                GeneralName::DnsName(name) => (false, is_name_of(name.as_str(), host)),
                GeneralName::IpAddress(bytes) => {
                    (true, address.is_some_and(|it| octets(it) == bytes.as_bytes()))
                }
                _ => continue,
            };
            if same {
                return Ok(true);
            }
            of_its_kind |= is_address == address.is_some();
        }
    }
    if of_its_kind {
        return Ok(false);
    }
    let common = certificate.certificate.tbs_certificate().subject().common_name();
    let common = common.map_err(|_| refused(CertificateError::BadEncoding))?;
    Ok(common.is_some_and(|name: DirectoryString| is_name_of(&name.value(), host)))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Returns whether `host` matches the pattern. `*.` at the beginning matches one label.
fn is_name_of(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(domain) = pattern.strip_prefix("*.").filter(|domain| !domain.is_empty()) else {
        return false;
    };
    host.split_once('.')
        .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain))
}

fn refused(why: CertificateError) -> Error {
    Error::InvalidCertificate(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls13_handshakes_are_not_signed_with_pkcs1() {
        for (scheme, expected) in [
            (SignatureScheme::RSA_PKCS1_SHA1, false),
            (SignatureScheme::RSA_PKCS1_SHA256, false),
            (SignatureScheme::RSA_PKCS1_SHA512, false),
            (SignatureScheme::RSA_PSS_SHA256, true),
            (SignatureScheme::ECDSA_NISTP256_SHA256, true),
            (SignatureScheme::ED25519, true),
        ] {
            assert_eq!(is_of_tls13(scheme), expected, "{scheme:?}");
        }
    }

    #[test]
    fn wildcard_matches_one_label_at_the_start() {
        for (pattern, host, expected) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("d*.example.com", "db.example.com", false),
            ("*", "db", false),
            ("*.", "db.", false),
        ] {
            assert_eq!(is_name_of(pattern, host), expected, "{pattern} {host}");
        }
    }
}
