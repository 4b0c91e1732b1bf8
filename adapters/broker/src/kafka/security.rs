//! TLS and SASL: how connections to Kafka are protected.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use adapters_pem::{first_expiry, no_pair, read_certificates, read_key};
use rskafka::client::{Credentials, SaslConfig};
use rustls::{ClientConfig, RootCertStore};

/// How connections to Kafka are protected. The default is neither TLS nor SASL.
#[derive(Debug, Clone, Default)]
pub struct KafkaSecurity {
    pub tls: Option<KafkaTls>,
    pub sasl: Option<KafkaSasl>,
}

/// The authorities that are trusted, and the client certificate.
#[derive(Clone)]
pub struct KafkaTls {
    pub(super) config: Arc<ClientConfig>,
    client_expires: Option<SystemTime>,
}

/// The files of [`KafkaTls`], all in PEM.
#[derive(Debug, Clone, Default)]
pub struct KafkaTlsFiles {
    /// The authorities that sign the certificates of brokers. None: those of the operating system.
    pub authorities: Option<PathBuf>,
    /// The client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// One of the files of [`KafkaTlsFiles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KafkaTlsFile {
    Authorities,
    Certificate,
    Key,
}

/// The user that a connection logs in as.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSasl {
    pub mechanism: SaslMechanism,
    pub username: String,
    pub password: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl KafkaSecurity {
    /// Whether the network between here and the brokers can read the password.
    pub fn sends_password_in_clear(&self) -> bool {
        let sends_it = |sasl: &KafkaSasl| sasl.mechanism == SaslMechanism::Plain;
        self.tls.is_none() && self.sasl.as_ref().is_some_and(sends_it)
    }

    /// Whether connections use TLS or SASL.
    pub(super) fn is_on(&self) -> bool {
        self.tls.is_some() || self.sasl.is_some()
    }
}

impl KafkaTls {
    /// Reads the files. Returns every problem, each with the file that has it.
    pub fn read(files: &KafkaTlsFiles) -> Result<Self, Vec<(KafkaTlsFile, String)>> {
        let mut problems = Vec::new();
        let roots = match &files.authorities {
            Some(path) => read_authorities(path),
            None => system_authorities(),
        };
        let roots = noted(&mut problems, KafkaTlsFile::Authorities, roots);
        let client = files.client.as_ref().map(|(certificate, key)| {
            let certificates = read_certificates(certificate);
            let certificates = noted(&mut problems, KafkaTlsFile::Certificate, certificates);
            certificates.zip(noted(&mut problems, KafkaTlsFile::Key, read_key(key)))
        });
        let Some(roots) = roots.filter(|_| problems.is_empty()) else { return Err(problems) };

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_root_certificates(roots);
        let client = client.flatten();
        let client_expires = client.as_ref().and_then(|(chain, _)| first_expiry(chain));
        let config = match client {
            Some((certificates, key)) => builder
                .with_client_auth_cert(certificates, key)
                .map_err(|error| vec![(KafkaTlsFile::Key, no_pair(&error))])?,
            None => builder.with_no_client_auth(),
        };
        Ok(Self { config: Arc::new(config), client_expires })
    }

    /// Returns when the client certificate expires, if there is one.
    pub fn client_expires(&self) -> Option<SystemTime> {
        self.client_expires
    }
}

fn noted<T>(
    problems: &mut Vec<(KafkaTlsFile, String)>,
    file: KafkaTlsFile,
    read: Result<T, String>,
) -> Option<T> {
    read.map_err(|problem| problems.push((file, problem))).ok()
}

fn read_authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("the operating system has no certificates of authorities".to_owned());
    }
    Ok(roots)
}

impl KafkaSasl {
    pub(super) fn for_rskafka(&self) -> SaslConfig {
        let credentials = Credentials::new(self.username.clone(), self.password.clone());
        match self.mechanism {
            SaslMechanism::Plain => SaslConfig::Plain(credentials),
            SaslMechanism::ScramSha256 => SaslConfig::ScramSha256(credentials),
            SaslMechanism::ScramSha512 => SaslConfig::ScramSha512(credentials),
        }
    }
}

impl SaslMechanism {
    /// Returns the registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl fmt::Debug for KafkaTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaTls").finish_non_exhaustive()
    }
}

/// Leaves out the password.
impl fmt::Debug for KafkaSasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSasl")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
