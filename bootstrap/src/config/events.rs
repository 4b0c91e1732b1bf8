//! Events, which are posted to a URL of the operator.

use std::fmt;

use adapters_gateway::has_private_address;
use domain::EventSecrets;

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Secret, Url},
    },
};

#[derive(Clone)]
pub struct EventsConfig {
    pub url: http::Uri,
    pub secrets: EventSecrets,
    /// Whether the URL may lead to a machine of our own network.
    pub allow_private: bool,
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
    Some(EventsConfig { url: url?, secrets: secrets?, allow_private: allow_private? })
}

/// Leaves the URL out: a password may stand in it.
impl fmt::Debug for EventsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventsConfig({:?} …)", self.secrets)
    }
}
