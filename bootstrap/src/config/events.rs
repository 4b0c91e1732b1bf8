//! Events, which are posted to a URL of the operator.

use std::{fmt, path::Path};

use adapters_gateway::{Authorities, has_private_address};
use domain::EventSecrets;

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Secret, Text, Url},
    },
};

#[derive(Clone)]
pub struct EventsConfig {
    pub url: http::Uri,
    pub secrets: EventSecrets,
    /// Whether the URL may lead to a machine of our own network.
    pub allow_private: bool,
    /// The authorities that sign the certificate of the URL's host.
    pub authorities: Authorities,
}

pub(super) const SECTION: Section = Section {
    title: "Events",
    settings: &[
        Setting {
            name: "EVENTS_URL",
            default: "",
            example: Some("https://example.com/events"),
            values: Url,
            meaning: "Where [events](api.md#events) are posted. Unset, no events are recorded.",
        },
        Setting {
            name: "EVENTS_SECRET",
            default: "",
            example: Some("whsec_<base64 of 24 to 64 bytes>"),
            values: Secret("whsec_ and base64 of 24 to 64 bytes, up to 4 by comma"),
            meaning: "Key that signs events. Needed with `EVENTS_URL`.",
        },
        Setting {
            name: "EVENTS_ALLOW_PRIVATE",
            default: "false",
            example: None,
            values: OneOf(&["true", "false"]),
            meaning: "Whether `EVENTS_URL` may lead into a private network.",
        },
        Setting {
            name: "EVENTS_CA",
            default: "",
            example: Some("/etc/ssl/certs/events-ca.pem"),
            values: Text("path of a PEM file"),
            meaning: "The only authorities that may sign the certificate of `EVENTS_URL`. Unset, \
                      those that browsers trust.",
        },
    ],
};

/// Reads the section. `None`: no events are posted, or a setting is bad.
pub(super) fn read(env: &mut Reader<'_>) -> Option<EventsConfig> {
    let allow_private = env.boolean("EVENTS_ALLOW_PRIVATE");
    let secrets = env.secret("EVENTS_SECRET");
    let url = env.url("EVENTS_URL");
    if url.is_some() && !env.is_set("EVENTS_SECRET") {
        env.problem("EVENTS_SECRET", "is missing: Messager signs each event with it");
    }
    if allow_private == Some(false) && url.as_ref().is_some_and(has_private_address) {
        let problem = "has an address that is not public; EVENTS_ALLOW_PRIVATE=true would allow it";
        env.problem("EVENTS_URL", problem);
    }
    let authorities = read_authorities(env, url.as_ref());
    Some(EventsConfig {
        url: url?,
        secrets: secrets?,
        allow_private: allow_private?,
        authorities: authorities?,
    })
}

fn read_authorities(env: &mut Reader<'_>, url: Option<&http::Uri>) -> Option<Authorities> {
    let Some(path) = env.text("EVENTS_CA") else { return Some(Authorities::Public) };
    if url.is_some_and(|url| url.scheme_str() == Some("http")) {
        env.problem("EVENTS_CA", "needs EVENTS_URL to begin with https://");
    }
    Authorities::read(Path::new(path.trim()))
        .map_err(|problem| env.problem("EVENTS_CA", &format!("cannot be used: {problem}")))
        .ok()
}

/// Leaves the URL out: a password may stand in it.
impl fmt::Debug for EventsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventsConfig({:?} …)", self.secrets)
    }
}
