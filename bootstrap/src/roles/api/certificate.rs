//! The certificate of the API, which may be renewed while the process runs.

use std::{future::ready, time::SystemTime};

use adapters_http::{ServerCertificate, ServerTls};
use chrono::{DateTime, SecondsFormat, Utc};

use crate::{
    Process,
    config::ApiTls,
    metrics::CertificateMetrics,
    periodic::every,
    roles::clock,
    watched_files::{LOOK, WatchedFiles},
};

/// Returns TLS with the certificate of the settings, and takes a renewed one over.
///
/// A pair of files that cannot be used changes nothing.
pub(super) fn tls(process: &mut Process, files: ApiTls) -> anyhow::Result<ServerTls> {
    let certificate = files.read()?;
    let metrics = process.certificates.clone();
    note(&certificate, &metrics);
    let tls = ServerTls::new(certificate);
    let mut renewal = Renewal::of(files, tls.clone());
    let stop = process.stop.clone();
    process.spawn(async move {
        every(LOOK, &stop, || {
            if let Some(certificate) = renewal.look() {
                note(&certificate, &metrics);
            }
            ready(())
        })
        .await;
        Ok(())
    });
    Ok(tls)
}

fn note(certificate: &ServerCertificate, metrics: &CertificateMetrics) {
    let expires = certificate.expires();
    metrics.expires("api", expires);
    if expires <= clock() {
        tracing::warn!(
            expired = time(expires),
            "the certificate of the API has expired, so clients refuse it: renew APP_TLS_CERT"
        );
    }
}

fn time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}

struct Renewal {
    files: ApiTls,
    watched: WatchedFiles,
    tls: ServerTls,
}

impl Renewal {
    fn of(files: ApiTls, tls: ServerTls) -> Self {
        let watched = WatchedFiles::new(vec![files.certificate.clone(), files.key.clone()]);
        Self { files, watched, tls }
    }

    /// Compares the files with what they were. Returns the certificate if there is another one.
    fn look(&mut self) -> Option<ServerCertificate> {
        if !self.watched.have_changed() {
            return None;
        }
        self.watched.judge(self.watched.paths().to_vec());
        match self.files.read() {
            Ok(certificate) if self.tls.replace(certificate.clone()) => {
                let expires = time(certificate.expires());
                tracing::info!(expires, "new connections get the renewed certificate of the API");
                Some(certificate)
            }
            Ok(_) => None,
            Err(invalid) => {
                tracing::error!(
                    problems = invalid.problems().join("; "),
                    "the changed certificate of the API cannot be used, and the one from before \
                     stays in force: correct the files"
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, process::Command};

    use super::*;

    /// A folder that is removed at the end of the test.
    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    impl Folder {
        /// Makes `NAME.crt` and `NAME.key` for each name.
        fn with(test: &str, names: &[&str]) -> Self {
            let folder =
                std::env::temp_dir().join(format!("messager-{test}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            for name in names {
                let made = Command::new("openssl")
                    .current_dir(&folder)
                    .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
                    .args(["-nodes", "-subj", "/CN=localhost", "-days", "10"])
                    .args(["-out", &format!("{name}.crt"), "-keyout", &format!("{name}.key")])
                    .output()
                    .unwrap();
                assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            }
            Self(folder)
        }

        fn copy(&self, from: &str, to: &str) {
            fs::copy(self.0.join(from), self.0.join(to)).unwrap();
        }

        fn files(&self) -> ApiTls {
            let [certificate, key] = ["current.crt", "current.key"].map(|name| self.0.join(name));
            ApiTls { certificate, key }
        }
    }

    #[test]
    fn renewed_pair_is_shown_once_it_was_the_same_twice_and_a_bad_one_never() {
        let folder = Folder::with("renewal", &["one", "two"]);
        folder.copy("one.crt", "current.crt");
        folder.copy("one.key", "current.key");
        let files = folder.files();
        let tls = ServerTls::new(files.read().unwrap());
        let mut renewal = Renewal::of(files, tls);
        let mut looks = |number: usize| (0..number).filter_map(|_| renewal.look()).count();
        assert_eq!(looks(3), 0, "the files are those of the start");

        folder.copy("two.crt", "current.crt");
        assert_eq!(looks(3), 0, "the key is that of the old certificate");
        fs::remove_file(folder.0.join("current.key")).unwrap();
        assert_eq!(looks(3), 0, "there is no key");

        folder.copy("two.key", "current.key");
        assert_eq!([looks(1), looks(1), looks(1)], [0, 1, 0]);
    }

    #[test]
    fn problems_name_the_settings() {
        let folder = Folder::with("problems", &["one", "two"]);
        let missing = folder.files().read().unwrap_err();
        folder.copy("one.crt", "current.crt");
        folder.copy("two.key", "current.key");
        let mismatch = folder.files().read().unwrap_err();

        let path = |name: &str| folder.0.join(name).display().to_string();
        let missing = missing.problems();
        let expected = format!("APP_TLS_CERT cannot be used: {}: No such", path("current.crt"));
        assert!(missing[0].starts_with(&expected), "{missing:?}");
        assert!(missing[1].starts_with("APP_TLS_KEY cannot be used: "), "{missing:?}");
        let expected = "APP_TLS_KEY cannot be used: is not the key of the certificate";
        assert_eq!(mismatch.problems(), [expected]);
    }
}
