//! The certificate of the API.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};

use super::findings::Findings;
use crate::{config::ApiTls, roles::clock};

/// A certificate that is renewed by a program is renewed earlier.
const SOON: Duration = Duration::from_secs(7 * 86_400);

pub(super) fn examine(files: &ApiTls, findings: &mut Findings) {
    match files.read() {
        Ok(certificate) => judge(certificate.expires(), clock(), findings),
        Err(invalid) => {
            let advice = "a process with the API does not start; docs/security.md has the rules";
            for problem in invalid.problems() {
                findings.fail("certificate", problem, advice);
            }
        }
    }
}

fn judge(expires: SystemTime, now: SystemTime, findings: &mut Findings) {
    let day = DateTime::<Utc>::from(expires).format("%Y-%m-%d %H:%M UTC");
    let advice = "renew APP_TLS_CERT; no restart is needed";
    match expires.duration_since(now) {
        Err(_) => {
            findings.warn("certificate", format!("it expired on {day}: clients refuse it"), advice);
        }
        Ok(left) if left < SOON => {
            findings.warn("certificate", format!("it expires on {day}"), advice);
        }
        Ok(_) => findings.ok("certificate", format!("it expires on {day}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_that_expires_soon_or_has_expired_is_a_warning() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let day = Duration::from_secs(86_400);
        for (expires, expected) in [
            (
                now - day,
                "warning\tcertificate\tit expired on 2027-01-14 08:00 UTC: clients refuse it",
            ),
            (now + 6 * day, "warning\tcertificate\tit expires on 2027-01-21 08:00 UTC"),
            (now + 8 * day, "ok\tcertificate\tit expires on 2027-01-23 08:00 UTC"),
        ] {
            let mut findings = Findings::default();
            judge(expires, now, &mut findings);
            assert!(findings.lines().contains(expected), "{}", findings.lines());
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_failures() {
        let mut findings = Findings::default();

        let files = ApiTls { certificate: "/nowhere.crt".into(), key: "/nowhere.key".into() };
        examine(&files, &mut findings);

        assert_eq!(findings.all().len(), 2);
        assert!(findings.has_failures());
        assert!(findings.lines().contains("APP_TLS_KEY cannot be used: /nowhere.key: No such"));
    }
}
