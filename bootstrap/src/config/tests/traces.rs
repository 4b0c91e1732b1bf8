use super::*;
use application::Sampler;

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

fn traces(more: &[(&str, &str)]) -> TracesConfig {
    read(&[&[ENDPOINT], more].concat()).unwrap().traces.unwrap()
}

#[test]
fn nothing_is_traced_unless_there_is_a_collector() {
    assert!(read(&[]).unwrap().traces.is_none());
    assert!(read(&[("OTEL_TRACES_SAMPLER", "always_on")]).unwrap().traces.is_none());
    assert_eq!(traces(&[]).sampler, Sampler { ratio: 1.0, follows_parent: true });
}

#[test]
fn samplers_are_those_of_opentelemetry() {
    let sampler = |name| {
        let settings = [("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
        let Sampler { ratio, follows_parent } = traces(&settings).sampler;
        (ratio, follows_parent)
    };

    for (name, expected) in [
        ("always_on", (1.0, false)),
        ("always_off", (0.0, false)),
        ("traceidratio", (0.25, false)),
        ("parentbased_always_on", (1.0, true)),
        ("parentbased_always_off", (0.0, true)),
        ("parentbased_traceidratio", (0.25, true)),
    ] {
        assert_eq!(sampler(name), expected, "{name}");
    }
}

#[test]
fn what_is_not_supported_is_refused_together() {
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hush"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_SERVICE_NAME", &"x".repeat(256)),
    ];

    let InvalidConfig(problems) = read(&settings).unwrap_err();

    let begins = [
        "OTEL_EXPORTER_OTLP_PROTOCOL is \"grpc\", and must be one of http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS cannot be used: headers are name=value",
        "OTEL_SERVICE_NAME is \"xxx",
        "OTEL_TRACES_SAMPLER_ARG is \"1.5\", and must be a number from 0 to 1",
        "OTEL_TRACES_SAMPLER is \"jaeger_remote\", and must be one of always_on",
        "OTEL_EXPORTER_OTLP_ENDPOINT must begin with http:// or https://",
        "OTEL_EXPORTER_OTLP_CERTIFICATE cannot be used: ",
    ];
    assert_eq!(problems.len(), begins.len(), "{problems:#?}");
    for (problem, begin) in problems.iter().zip(begins) {
        assert!(problem.starts_with(begin), "{problem}");
    }
    assert!(problems.iter().all(|problem| !problem.contains("hush")), "{problems:#?}");
}

#[test]
fn endpoint_has_no_query_and_no_fragment() {
    for end in ["?key=hush", "/otlp?", "#hush"] {
        let endpoint = format!("http://collector:4318{end}");
        let error = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).unwrap_err();
        let expected = "OTEL_EXPORTER_OTLP_ENDPOINT must have no query and no fragment: \
                        /v1/traces is added to its path";
        assert_eq!(error.0, [expected], "{end}");
    }
}

#[test]
fn secret_that_crosses_the_network_in_clear_text_is_warned_of() {
    #[track_caller]
    fn check(endpoint: &str, headers: &str, expected: bool) {
        let settings =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), ("OTEL_EXPORTER_OTLP_HEADERS", headers)];
        let warning = read(&settings).unwrap().warning_of_collector();
        assert_eq!(warning.is_some(), expected, "{endpoint} {headers}");
    }
    let headers = "authorization=Bearer%20hush";

    for host in ["collector:4318", "192.0.2.1", "[2001:db8::1]:4318", "localhost.example"] {
        check(&format!("http://{host}"), headers, true);
        check(&format!("http://user:hush@{host}"), "", true);
        check(&format!("http://{host}"), "", false);
        check(&format!("https://{host}"), headers, false);
    }
    for host in ["localhost:4318", "LOCALHOST", "127.0.0.1:4318", "127.1.2.3", "[::1]:4318"] {
        check(&format!("http://{host}"), headers, false);
        check(&format!("http://user:hush@{host}"), "", false);
    }
    assert!(read(&[]).unwrap().warning_of_collector().is_none());
}
