//! Encodes the metrics as `OpenMetrics`, a format that can carry exemplars.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use application::TraceParent;
use axum::http::{HeaderMap, header::ACCEPT};
use prometheus::{
    TextEncoder,
    proto::{MetricFamily, MetricType},
};

pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The latest traced observation of each histogram bucket. The default keeps none.
#[derive(Debug, Clone, Default)]
pub struct Exemplars(Option<Arc<Kept>>);

#[derive(Debug)]
struct Kept {
    clock: fn() -> SystemTime,
    /// The key is the series of the bucket, as the text format writes it.
    by_bucket: Mutex<HashMap<String, Exemplar>>,
}

#[derive(Debug, Clone)]
struct Exemplar {
    trace_id: String,
    value: f64,
    at: SystemTime,
}

impl Exemplars {
    /// Keeps exemplars, with the times of this clock.
    pub fn kept(clock: fn() -> SystemTime) -> Self {
        Self(Some(Arc::new(Kept { clock, by_bucket: Mutex::default() })))
    }

    pub(crate) fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Records the trace of an observation. `labels` are in the order of their names, and `buckets`
    /// are those of the histogram.
    pub fn note(
        &self,
        histogram: &str,
        labels: &[(&str, &str)],
        buckets: &[f64],
        value: f64,
        trace: Option<&TraceParent>,
    ) {
        let (Some(kept), Some(trace)) = (&self.0, trace.filter(|it| it.is_sampled())) else {
            return;
        };
        let bound = buckets.iter().find(|bound| value <= **bound);
        let bound = bound.map_or_else(|| "+Inf".to_owned(), ToString::to_string);
        let mut bucket = format!("{histogram}_bucket{{");
        for (name, text) in labels.iter().copied().chain([("le", bound.as_str())]) {
            let comma = if name == "le" { "" } else { "," };
            let _ = write!(bucket, "{name}=\"{text}\"{comma}");
        }
        bucket.push('}');
        let exemplar =
            Exemplar { trace_id: trace.trace_id().to_owned(), value, at: (kept.clock)() };
        let mut by_bucket = kept.by_bucket.lock().unwrap_or_else(PoisonError::into_inner);
        by_bucket.insert(bucket, exemplar);
    }

    /// Returns the metrics with their exemplars.
    pub(crate) fn encode(&self, families: &[MetricFamily]) -> Result<String, prometheus::Error> {
        let mut text = String::new();
        for family in families {
            let plain = TextEncoder::new().encode_to_string(std::slice::from_ref(family))?;
            self.append(&mut text, family, &plain);
        }
        text.push_str("# EOF\n");
        Ok(text)
    }

    /// Appends a family: the samples of the text format, with another head and with exemplars.
    fn append(&self, text: &mut String, family: &MetricFamily, plain: &str) {
        let name = family.name();
        let (name, kind) = match family.get_field_type() {
            // In OpenMetrics, the samples of every counter end in `_total`.
            MetricType::COUNTER => match name.strip_suffix("_total") {
                Some(name) => (name, "counter"),
                None => (name, "unknown"),
            },
            MetricType::GAUGE => (name, "gauge"),
            MetricType::HISTOGRAM => (name, "histogram"),
            MetricType::SUMMARY => (name, "summary"),
            MetricType::UNTYPED => (name, "unknown"),
        };
        let help = family.help().replace('\\', r"\\").replace('\n', r"\n").replace('"', "\\\"");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        let by_bucket = self.0.as_ref();
        let by_bucket =
            by_bucket.map(|it| it.by_bucket.lock().unwrap_or_else(PoisonError::into_inner));
        for sample in plain.lines().filter(|line| !line.starts_with('#')) {
            text.push_str(sample);
            let series = sample.rsplit_once(' ').map_or(sample, |(series, _)| series);
            if let Some(exemplar) = by_bucket.as_ref().and_then(|it| it.get(series)) {
                let Exemplar { trace_id, value, at } = exemplar;
                let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                let _ = write!(text, " # {{trace_id=\"{trace_id}\"}} {value} {at:.3}");
            }
            text.push('\n');
        }
    }
}

/// Whether a caller accepts `OpenMetrics`. Prometheus prefers it to the text format.
pub(crate) fn takes_open_metrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_type = parts.next() == Some("application/openmetrics-text");
        let is_refused = parts.any(|it| matches!(it, "q=0" | "q=0.0"));
        is_type && !is_refused
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntGauge, Registry};

    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn trace(flags: &str) -> TraceParent {
        TRACE.replace("-01", flags).parse().unwrap()
    }

    fn kept() -> Exemplars {
        Exemplars::kept(|| UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_123))
    }

    #[test]
    fn metrics_have_the_heads_and_the_end_marker_of_openmetrics() {
        let registry = Registry::new();
        let told = IntCounter::new("told_total", r#"A "quoted" \ text."#).unwrap();
        let counter = IntCounter::new("processed_messages", "Messages.").unwrap();
        let gauge = IntGauge::new("held", "Held.").unwrap();
        registry.register(Box::new(told)).unwrap();
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(gauge)).unwrap();

        let text = kept().encode(&registry.gather()).unwrap();

        assert_eq!(
            text,
            "# HELP held Held.\n# TYPE held gauge\nheld 0\n\
             # HELP processed_messages Messages.\n# TYPE processed_messages unknown\n\
             processed_messages 0\n\
             # HELP told A \\\"quoted\\\" \\\\ text.\n# TYPE told counter\ntold_total 0\n# EOF\n"
        );
    }

    #[test]
    fn bucket_has_the_latest_traced_observation() {
        let (name, buckets) = ("took_seconds", [0.5, 1.0, 2.5]);
        let opts = HistogramOpts::new(name, "Took.").buckets(buckets.to_vec());
        let histogram = HistogramVec::new(opts, &["route", "status"]).unwrap();
        let registry = Registry::new();
        registry.register(Box::new(histogram.clone())).unwrap();
        let labels = [("route", "/v1/{id}"), ("status", "200")];
        let exemplars = kept();
        for (value, trace) in [
            (0.6, Some(trace("-01"))),
            (1.0, Some(trace("-01"))),
            (0.1, Some(trace("-00"))),
            (0.2, None),
            (9.0, Some(trace("-01"))),
        ] {
            histogram.with_label_values(&["/v1/{id}", "200"]).observe(value);
            exemplars.note(name, &labels, &buckets, value, trace.as_ref());
        }

        let text = exemplars.encode(&registry.gather()).unwrap();

        let series = r#"took_seconds_bucket{route="/v1/{id}",status="200",le="#;
        let id = r#"# {trace_id="0af7651916cd43dd8448eb211c80319c"}"#;
        for line in [
            format!("{series}\"0.5\"}} 2\n"),
            format!("{series}\"1\"}} 4 {id} 1 1700000000.123\n"),
            format!("{series}\"2.5\"}} 4\n"),
            format!("{series}\"+Inf\"}} 5 {id} 9 1700000000.123\n"),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn openmetrics_is_sent_only_to_callers_that_accept_it() {
        let takes = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
            takes_open_metrics(&headers)
        };

        assert!(takes(
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
        ));
        for other in ["text/plain", "*/*", "application/openmetrics-text;q=0"] {
            assert!(!takes(other), "{other}");
        }
    }
}
