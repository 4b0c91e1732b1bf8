//! Traces, which are sent to an OpenTelemetry collector.

use std::{fmt, path::Path};

use adapters_gateway::{Authorities, CollectorHeaders};
use application::Sampler;

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Secret, Text, Url},
    },
};

#[derive(Clone)]
pub struct TracesConfig {
    pub endpoint: http::Uri,
    pub headers: CollectorHeaders,
    pub authorities: Authorities,
    /// `None`: the name of the binary.
    pub service_name: Option<String>,
    pub sampler: Sampler,
}

/// The words of `OTEL_TRACES_SAMPLER`: whether the caller decides, and the part of new traces. `None` is
/// `OTEL_TRACES_SAMPLER_ARG`.
const SAMPLERS: [(&str, (bool, Option<f64>)); 6] = [
    ("always_on", (false, Some(1.0))),
    ("always_off", (false, Some(0.0))),
    ("traceidratio", (false, None)),
    ("parentbased_always_on", (true, Some(1.0))),
    ("parentbased_always_off", (true, Some(0.0))),
    ("parentbased_traceidratio", (true, None)),
];

pub(super) const SECTION: Section = Section {
    title: "Traces",
    settings: &[
        Setting {
            name: "OTEL_EXPORTER_OTLP_ENDPOINT",
            default: "",
            example: Some("http://collector:4318"),
            values: Url,
            meaning: "OpenTelemetry collector that gets [traces](tracing.md). `/v1/traces` is added. \
                      Unset, nothing is traced.",
        },
        Setting {
            name: "OTEL_EXPORTER_OTLP_PROTOCOL",
            default: "http/protobuf",
            example: None,
            values: OneOf(&["http/protobuf"]),
            meaning: "The protocol of the collector.",
        },
        Setting {
            name: "OTEL_EXPORTER_OTLP_HEADERS",
            default: "",
            example: Some("authorization=Bearer%20<token>"),
            values: Secret("name=value, by comma, percent-encoded"),
            meaning: "Headers of each request to the collector.",
        },
        Setting {
            name: "OTEL_EXPORTER_OTLP_CERTIFICATE",
            default: "",
            example: Some("/etc/ssl/certs/collector-ca.pem"),
            values: Text("path of a PEM file"),
            meaning: "The only authorities that may sign the certificate of the collector. Unset, \
                      those that browsers trust.",
        },
        Setting {
            name: "OTEL_SERVICE_NAME",
            default: "messager-api, messager-processor, messager-consumer or messager",
            example: Some("messager"),
            values: Text("1 to 255 characters"),
            meaning: "`service.name` of the spans.",
        },
        Setting {
            name: "OTEL_TRACES_SAMPLER",
            default: "parentbased_always_on",
            example: None,
            values: OneOf(&[
                "always_on",
                "always_off",
                "traceidratio",
                "parentbased_always_on",
                "parentbased_always_off",
                "parentbased_traceidratio",
            ]),
            meaning: "Which messages are traced. With `parentbased_…`, a caller that sends \
                      `traceparent` decides.",
        },
        Setting {
            name: "OTEL_TRACES_SAMPLER_ARG",
            default: "1",
            example: None,
            values: Text("a number from 0 to 1"),
            meaning: "Part of the messages that is traced with `traceidratio` and \
                      `parentbased_traceidratio`.",
        },
    ],
};

/// Reads the section. `None`: nothing is traced, or a setting is bad.
pub(super) fn read(env: &mut Reader<'_>) -> Option<TracesConfig> {
    env.choice("OTEL_EXPORTER_OTLP_PROTOCOL", &[("http/protobuf", ())]);
    let headers = if env.is_set("OTEL_EXPORTER_OTLP_HEADERS") {
        env.secret("OTEL_EXPORTER_OTLP_HEADERS")
    } else {
        Some(CollectorHeaders::default())
    };
    let service_name = env.optional("OTEL_SERVICE_NAME", |name| {
        (1..=255).contains(&name.len()).then(|| name.to_owned())
    });
    let sampler = read_sampler(env);
    let endpoint = read_endpoint(env);
    let authorities = read_authorities(env, endpoint.as_ref());
    Some(TracesConfig {
        endpoint: endpoint?,
        headers: headers?,
        authorities: authorities?,
        service_name,
        sampler: sampler?,
    })
}

fn read_endpoint(env: &mut Reader<'_>) -> Option<http::Uri> {
    const NAME: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    // A parsed URL has no fragment.
    if env.text(NAME).is_some_and(|url| url.contains(['?', '#'])) {
        env.problem(NAME, "must have no query and no fragment: /v1/traces is added to its path");
        return None;
    }
    env.url(NAME)
}

fn read_sampler(env: &mut Reader<'_>) -> Option<Sampler> {
    let ratio = env.parsed("OTEL_TRACES_SAMPLER_ARG", |text| {
        text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio))
    });
    let (follows_parent, fixed) = env.choice("OTEL_TRACES_SAMPLER", &SAMPLERS)?;
    Some(Sampler { ratio: fixed.or(ratio)?, follows_parent })
}

fn read_authorities(env: &mut Reader<'_>, endpoint: Option<&http::Uri>) -> Option<Authorities> {
    const NAME: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let Some(path) = env.text(NAME) else { return Some(Authorities::Public) };
    if endpoint.is_some_and(|url| url.scheme_str() == Some("http")) {
        env.problem(NAME, "needs OTEL_EXPORTER_OTLP_ENDPOINT to begin with https://");
    }
    Authorities::read(Path::new(path.trim()))
        .map_err(|problem| env.problem(NAME, &format!("cannot be used: {problem}")))
        .ok()
}

/// Leaves the URL out: a password may stand in it.
impl fmt::Debug for TracesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TracesConfig({:?} …)", self.sampler)
    }
}
