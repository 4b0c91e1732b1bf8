//! The API: its addresses, its connections, and the callers that may use it.

use std::{num::NonZeroU16, path::PathBuf};

use adapters_http::{ApiAuth, CertificateFile, Hosts, ServerCertificate, TrustedProxies};
use application::{Counting, SendRules};
use domain::SendLimits;

use super::{
    InvalidConfig,
    numbers::NumberConfig,
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{Number, OneOf, Port, Text},
    },
};

#[derive(Debug, Clone)]
pub struct ApiConfig {
    pub hosts: Hosts,
    pub port: u16,
    /// `None`: the API speaks HTTP without TLS.
    pub tls: Option<ApiTls>,
    /// The proxies whose word about the address of a caller counts.
    pub proxies: TrustedProxies,
    pub max_connections: u16,
    /// `None`: no limit.
    pub max_connections_per_peer: Option<NonZeroU16>,
    /// Which callers must show an API key.
    pub auth: ApiAuth,
    pub legacy: LegacyApiConfig,
}

/// The files of the API's certificate.
///
/// They are read only where the API runs: the other processes may not have the right to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl ApiTls {
    /// Reads the files. Reports every problem at once.
    pub fn read(&self) -> Result<ServerCertificate, InvalidConfig> {
        ServerCertificate::read(&self.certificate, &self.key).map_err(|problems| {
            let named = problems.into_iter().map(|(file, problem)| {
                let name = match file {
                    CertificateFile::Certificate => "APP_TLS_CERT",
                    CertificateFile::Key => "APP_TLS_KEY",
                };
                format!("{name} cannot be used: {problem}")
            });
            InvalidConfig(named.collect())
        })
    }
}

/// The rules of `/api`. Only settings that are set hold there, and not the defaults of `/v1`,
/// because clients of the Go service did not have those limits.
#[derive(Debug, Clone)]
pub struct LegacyApiConfig {
    pub is_open: bool,
    pub rules: SendRules,
}

pub(super) const HOSTS: super::setting::Values =
    Text("*, localhost, or IP addresses of this machine, separated by commas");

pub(super) const SECTION: Section = Section {
    title: "API",
    settings: &[
        Setting {
            name: "APP_HOST",
            default: "*",
            example: None,
            values: HOSTS,
            meaning: "Addresses that the API listens on. `*` is every address, IPv4 and IPv6, and \
                      so is `::` alone. `localhost` is 127.0.0.1 and ::1.",
        },
        Setting {
            name: "APP_PORT",
            default: "8080",
            example: None,
            values: Port,
            meaning: "Port of the API.",
        },
        Setting {
            name: "APP_TLS_CERT",
            default: "",
            example: Some("/etc/ssl/certs/messager.pem"),
            values: Text("path of a PEM file"),
            meaning: "Certificate of the API, with those of intermediate authorities behind it. If \
                      it is set, the API speaks [HTTPS only](security.md#tls-of-the-api). Needs \
                      `APP_TLS_KEY`.",
        },
        Setting {
            name: "APP_TLS_KEY",
            default: "",
            example: Some("/etc/ssl/private/messager.pem"),
            values: Text("path of a PEM file"),
            meaning: "Private key of the API's certificate, not encrypted. Needs `APP_TLS_CERT`.",
        },
        Setting {
            name: "MAX_CONNECTIONS",
            default: "768",
            example: None,
            values: Number(1, 65_535),
            meaning: "[Connections](api.md#connections) of the API at a time. There are fewer if the \
                      limit of open files is too low.",
        },
        Setting {
            name: "MAX_CONNECTIONS_PER_PEER",
            default: "off",
            example: None,
            values: Text("off, or a whole number from 1 to 65535"),
            meaning: "Connections of the API from one client address at a time. A client address \
                      is an IPv4 address or an IPv6 /64. `TRUSTED_PROXIES` may have more.",
        },
        Setting {
            name: "TRUSTED_PROXIES",
            default: "",
            example: Some("10.0.0.0/8"),
            values: Text("IP addresses or networks such as 10.0.0.0/8, separated by commas"),
            meaning: "[Proxies](security.md#behind-a-proxy) whose `X-Forwarded-For` is believed. \
                      Unset, the caller is at the other end of the connection.",
        },
        Setting {
            name: "API_AUTH",
            default: "none on SQLite, otherwise v1",
            example: Some("v1"),
            values: OneOf(&["none", "v1", "all"]),
            meaning: "Which callers must show an [API key](api.md#api-keys): `none`, the callers of \
                      `/v1`, or `all`. `messager keys create` makes a key.",
        },
        Setting {
            name: "API_ENABLED",
            default: "true",
            example: None,
            values: OneOf(&["true", "false"]),
            meaning: "Whether `/api` is served. With `false` its paths answer 404.",
        },
        Setting {
            name: "API_UNREADABLE_NUMBERS",
            default: "send",
            example: None,
            values: OneOf(&["send", "refuse"]),
            meaning: "What `/api` does with digits that are not a number of any numbering plan.",
        },
    ],
};

/// Reads the section. `numbers` is `None` if its settings are bad. `limits` are the limits of
/// `/api`.
pub(super) fn read(
    env: &mut Reader<'_>,
    is_sqlite: bool,
    numbers: Option<&NumberConfig>,
    limits: SendLimits,
) -> Option<ApiConfig> {
    let hosts = env.hosts("APP_HOST");
    let port = env.parsed("APP_PORT", |text| text.parse().ok()).map(NonZeroU16::get);
    let tls = env
        .certificate("APP_TLS_CERT", "APP_TLS_KEY")
        .map(|(certificate, key)| ApiTls { certificate, key });
    let max_connections = env.number("MAX_CONNECTIONS");
    let max_connections_per_peer = env.parsed("MAX_CONNECTIONS_PER_PEER", |text| {
        if text == "off" { Some(None) } else { text.parse().ok().map(Some) }
    });
    let proxies = if env.is_set("TRUSTED_PROXIES") {
        env.parsed("TRUSTED_PROXIES", |text| text.parse().ok())
    } else {
        Some(TrustedProxies::default())
    };
    env.defaults_to("API_AUTH", if is_sqlite { "none" } else { "v1" });
    let auth = env
        .choice("API_AUTH", &[("none", ApiAuth::None), ("v1", ApiAuth::V1), ("all", ApiAuth::All)]);
    let is_open = env.boolean("API_ENABLED");
    let refuse_unreadable =
        env.choice("API_UNREADABLE_NUMBERS", &[("send", false), ("refuse", true)]);

    let counting = match auth? {
        ApiAuth::V1 => Counting::Apart,
        ApiAuth::None | ApiAuth::All if !env.is_set("LIMIT_PHONE") => Counting::PhonesApart,
        ApiAuth::None | ApiAuth::All => Counting::Shared,
    };
    let rules = SendRules {
        numbers: numbers?.legacy_rules.clone(),
        refuse_unreadable: refuse_unreadable?,
        limits,
        counting,
        budgets: None,
    };
    Some(ApiConfig {
        hosts: hosts?,
        port: port?,
        tls,
        proxies: proxies?,
        max_connections: max_connections?,
        max_connections_per_peer: max_connections_per_peer?,
        auth: auth?,
        legacy: LegacyApiConfig { is_open: is_open?, rules },
    })
}
