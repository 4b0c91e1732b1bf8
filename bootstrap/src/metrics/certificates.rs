//! Metrics of the certificates that the process shows to others.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntGaugeVec, Opts, Registry};

use super::registered;

#[derive(Debug, Clone)]
pub(crate) struct CertificateMetrics {
    expiry: IntGaugeVec,
}

impl CertificateMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let expiry = IntGaugeVec::new(
            Opts::new(
                "messager_certificate_expiry_timestamp_seconds",
                "When the first certificate of a chain expires, in Unix time.",
            ),
            &["certificate"],
        );
        Ok(Self { expiry: registered(registry, expiry)? })
    }

    /// Notes when `certificate` expires, which is the name of a part.
    pub(crate) fn expires(&self, certificate: &str, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.expiry.with_label_values(&[certificate]).set(seconds.cast_signed());
    }
}
