//! The file that names several gateways, for `GATEWAYS_FILE`.

use std::{fmt::Write, time::Duration};

use super::recorder::{AfterAmbiguous, GatewayKind};

/// What the file says besides the addresses of the gateways.
#[derive(Debug, Clone, Copy)]
pub struct GatewaysFile<'a> {
    /// The routes, as TOML. They know the gateways by the names of [`NAMES`].
    pub routes: &'a str,
    pub ambiguous: AfterAmbiguous,
    /// How long one call may take.
    pub timeout: Duration,
}

/// The names of the gateways, by their places.
pub const NAMES: [&str; 2] = ["first", "second"];

/// All numbers go to the first gateway, and to the second if that fails.
pub const ONE_ROUTE: &str = "[[route]]\ngateways = [\"first\", \"second\"]\n";

/// A gateway of the lab, described by settings alone. Unlike a webhook, it can say inside a 200 that
/// something is wrong.
const GATEWAY: &str = r#"
message_id = "message_id"
rules = [{ status = 200, path = "error", exists = true, outcome = "misconfigured" }]
headers = { Idempotency-Key = "{{ id }}" }
body = { id = "{{ id }}", phone = "{{ phone }}", code = "{{ code }}" }
"#;

impl GatewaysFile<'_> {
    /// Returns the text of the file for gateways on these ports.
    pub fn text(&self, kind: GatewayKind, ports: impl Iterator<Item = u16>) -> String {
        let Self { routes, ambiguous, timeout } = self;
        let deduplicates = kind == GatewayKind::Idempotent;
        let mut text = String::new();
        for (name, port) in NAMES.iter().zip(ports) {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[gateway.{name}]\nprovider = \"http\"\nurl = \"http://127.0.0.1:{port}/send\"\n\
                 deduplicates = {deduplicates}\ntimeout = {}\n{GATEWAY}\n",
                timeout.as_secs()
            );
        }
        let _ = write!(text, "{routes}\n[failover]\nambiguous = \"{ambiguous}\"\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_a_section_for_each_gateway() {
        let file = GatewaysFile {
            routes: ONE_ROUTE,
            ambiguous: AfterAmbiguous::Next,
            timeout: Duration::from_secs(3),
        };

        let text = file.text(GatewayKind::Plain, [1, 2].into_iter());

        for part in ["[gateway.first]", "127.0.0.1:2/send", "deduplicates = false", "\"next\""] {
            assert!(text.contains(part), "{text}");
        }
    }
}
