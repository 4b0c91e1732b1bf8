//! The SMS gateway.

use std::{fmt, time::Duration};

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Seconds, Url},
    },
};

#[derive(Clone, PartialEq, Eq)]
pub enum GatewayConfig {
    Console,
    Webhook { url: http::Uri, timeout: Duration, deduplicates: bool, keep_alive: Duration },
}

pub(super) const SECTION: Section = Section {
    title: "Gateway",
    settings: &[
        Setting {
            name: "GATEWAY",
            default: "console",
            example: None,
            values: OneOf(&["console", "webhook"]),
            meaning: "Where SMS go: `console` prints each SMS with its code to standard output, \
                      `webhook` posts it to `GATEWAY_URL`.",
        },
        Setting {
            name: "GATEWAY_URL",
            default: "",
            example: Some("https://sms.example/send"),
            values: Url,
            meaning: "Where `webhook` posts. A user and a password in it become \
                      `Authorization: Basic`.",
        },
        Setting {
            name: "GATEWAY_TIMEOUT",
            default: "10",
            example: None,
            values: Seconds(1, 300),
            meaning: "Seconds that one call may take.",
        },
        Setting {
            name: "GATEWAY_DEDUPLICATES",
            default: "true",
            example: None,
            values: OneOf(&["true", "false"]),
            meaning: "Whether the webhook heeds `Idempotency-Key`. With `false`, a call without an \
                      outcome is not repeated, and its message ends `unknown`.",
        },
        Setting {
            name: "GATEWAY_KEEP_ALIVE",
            default: "1",
            example: Some("1"),
            values: Seconds(0, 300),
            meaning: "Seconds for which an idle connection to the gateway may be used again. 0 \
                      opens a connection for each call. If the gateway closes an idle connection \
                      just as a call arrives, that call has no outcome, so keep this below the \
                      gateway's own time-out. `GATEWAY_DEDUPLICATES=false` allows only 0, which is \
                      then the default.",
        },
    ],
};

pub(super) fn read(env: &mut Reader<'_>) -> Option<GatewayConfig> {
    let timeout = env.seconds("GATEWAY_TIMEOUT");
    let deduplicates = env.boolean("GATEWAY_DEDUPLICATES");
    let keep_alive = keep_alive(env, deduplicates);
    let url = env.url("GATEWAY_URL");
    let is_webhook = env.choice("GATEWAY", &[("console", false), ("webhook", true)])?;
    if !is_webhook {
        return Some(GatewayConfig::Console);
    }
    if !env.is_set("GATEWAY_URL") {
        env.problem("GATEWAY_URL", "is missing: GATEWAY=webhook posts there");
    }
    Some(GatewayConfig::Webhook {
        url: url?,
        timeout: timeout?,
        deduplicates: deduplicates?,
        keep_alive: keep_alive?,
    })
}

/// A gateway that does not deduplicate gets a connection for each call: if it closes an idle one
/// just as a call is written to it, the message ends `unknown`.
fn keep_alive(env: &mut Reader<'_>, deduplicates: Option<bool>) -> Option<Duration> {
    let deduplicates = deduplicates?;
    if !deduplicates {
        env.defaults_to("GATEWAY_KEEP_ALIVE", "0");
    }
    let keep_alive = env.seconds("GATEWAY_KEEP_ALIVE")?;
    if !deduplicates && !keep_alive.is_zero() {
        env.problem("GATEWAY_KEEP_ALIVE", "must be 0 with GATEWAY_DEDUPLICATES=false");
        return None;
    }
    Some(keep_alive)
}

/// Leaves the URL out: a password may stand in it.
impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Console => "Console",
            Self::Webhook { .. } => "Webhook(…)",
        })
    }
}
