//! The providers and their settings, as the adapter declares them.

use adapters_gateway::{COMMON, Field, Listed, catalogue};

/// The providers whose settings are named `GATEWAY_…`, as they were before there were others.
pub(in crate::config) const PLAIN: [&str; 2] = ["console", "webhook"];

/// Returns every word that `provider` and `GATEWAY` may have.
pub(in crate::config) fn words() -> Vec<&'static str> {
    catalogue().map(|listed| listed.name).collect()
}

/// Returns the settings of a gateway of this provider: its own, then those of every gateway.
pub(super) fn fields_of(provider: &str) -> Vec<Field> {
    own_fields_of(provider).iter().chain(COMMON).copied().collect()
}

pub(in crate::config) fn own_fields_of(provider: &str) -> &'static [Field] {
    catalogue().find(|listed| listed.name == provider).map_or(&[], |listed| listed.fields)
}

/// Returns the name of a provider's own field in the environment.
pub(in crate::config) fn variable(provider: &str, field: &str) -> String {
    format!("{provider}_{field}").replace('-', "_").to_ascii_uppercase()
}

/// A setting of a provider, and its name in the environment.
pub(in crate::config) type Named = (&'static Field, String);

/// Returns the own settings of each provider in the environment. Those of `webhook` are declared as
/// settings.
pub(in crate::config) fn variables() -> Vec<(Listed, Vec<Named>)> {
    let named = |listed: Listed| {
        let fields = listed.fields.iter();
        (listed, fields.map(|field| (field, variable(listed.name, field.name))).collect())
    };
    catalogue().filter(|listed| !PLAIN.contains(&listed.name)).map(named).collect()
}
