use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use super::*;

/// A folder that is removed at the end of the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("messager-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes `NAME.crt`, which is valid for so many days, and `NAME.key`.
    fn make(&self, name: &str, days: u32) {
        let made = Command::new("openssl")
            .current_dir(&self.0)
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ])
            .args(["-subj", "/CN=localhost", "-days", &days.to_string()])
            .args(["-out", &format!("{name}.crt"), "-keyout", &format!("{name}.key")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "certificates have dates of this machine's clock")]
fn first_certificate_to_expire_decides() {
    let folder = Folder::new("pem-expiry");
    folder.make("long", 100);
    folder.make("short", 10);
    let mut chain = read_certificates(&folder.0.join("long.crt")).unwrap();
    chain.extend(read_certificates(&folder.0.join("short.crt")).unwrap());

    let expires = first_expiry(&chain).unwrap();

    let days = |days: u64| SystemTime::now() + Duration::from_secs(days * 86_400);
    assert!(expires > days(9) && expires < days(11), "{expires:?}");
    assert_eq!(first_expiry(&[CertificateDer::from(vec![1, 2, 3])]), None);
    assert!(read_key(&folder.0.join("long.key")).is_ok());
}

#[test]
fn file_that_cannot_be_used_is_named_and_not_shown() {
    let folder = Folder::new("pem-bad");
    let empty = folder.write("empty.pem", "hush");
    let broken = folder
        .write("broken.pem", "-----BEGIN CERTIFICATE-----\nhush!\n-----END CERTIFICATE-----\n");
    let missing = folder.0.join("missing.pem");

    for (problem, expected) in [
        (read_certificates(&empty).unwrap_err(), "empty.pem: it contains no certificate"),
        (read_certificates(&broken).unwrap_err(), "broken.pem: it is not a PEM file"),
        (read_certificates(&missing).unwrap_err(), "missing.pem: No such file"),
        (read_key(&empty).unwrap_err(), "empty.pem: it contains no private key in PEM"),
        (read_key(&missing).unwrap_err(), "missing.pem: No such file"),
    ] {
        assert!(problem.contains(expected) && !problem.contains("hush"), "{problem}");
    }
}
