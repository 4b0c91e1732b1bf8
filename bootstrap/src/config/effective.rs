//! The settings as an operator may see them.

use std::{collections::BTreeSet, path::Path};

use adapters_gateway::{FieldKind, Listed};

use super::{
    Config, InvalidConfig, LogFormat, gateways,
    mask::{MASK, host_of, without_password},
    reader::Reader,
    setting::{Setting, Values},
};
use crate::environment::{Environment, Source, path_names};

/// Every setting, with the value that a process would run with.
#[derive(Debug)]
pub struct Effective {
    /// By name.
    pub settings: Vec<Shown>,
    pub config: Result<Config, InvalidConfig>,
    /// Values that the operator probably did not intend.
    pub remarks: Vec<String>,
}

/// A setting and the source of its value. Secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub name: String,
    /// Empty: the setting is not set, and has no default.
    pub value: String,
    pub source: Source,
}

impl Effective {
    /// Reads the process's environment and the file `.env` of the working directory.
    pub fn read() -> Self {
        Self::of(&environment())
    }

    /// Returns the form of the log, even if settings are bad.
    pub(crate) fn log_format(&self, is_terminal: bool) -> LogFormat {
        let is = |name: &str, value: &str| {
            self.settings.iter().any(|it| it.name == name && it.value == value)
        };
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let set = formats.into_iter().find(|(word, _)| is("LOG_FORMAT", word)).map(|it| it.1);
        LogFormat::in_force(set, is("APP_MODE", "debug"), is_terminal)
    }

    pub(crate) fn of(environment: &Environment) -> Self {
        let lookup = |name: &str| environment.get(name).map(|(value, _)| value.to_owned());
        let mut env = Reader::new(&lookup);
        let mut config = Config::from_reader(&mut env);
        let mut known = names();
        known.extend(path_names(&secrets()));
        let variables = std::mem::take(&mut env.variables);
        known.extend(variables.iter().cloned());
        let problems = environment.problems(&known);
        let mut remarks = environment.warnings(&known);
        remarks.append(&mut env.remarks);
        remarks.extend(unused(environment, &variables));
        match &mut config {
            Ok(config) if problems.is_empty() => config.remarks.clone_from(&remarks),
            Ok(_) => config = Err(InvalidConfig(problems)),
            Err(InvalidConfig(others)) => {
                others.splice(..0, problems);
            }
        }
        let show = |setting: &'static Setting| {
            let set = environment.get(setting.name).filter(|(value, _)| !value.trim().is_empty());
            let default = env.defaults.get(setting.name).map_or(setting.default, |it| it.as_str());
            let (value, source) = match set {
                Some((value, source)) => (shown(setting.values, value), source),
                None => (default.to_owned(), Source::Default),
            };
            Shown { name: setting.name.to_owned(), value, source }
        };
        let mut settings: Vec<Shown> = Setting::all().map(show).collect();
        settings.extend(shown_of_providers(environment));
        settings.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Self { settings, config, remarks }
    }
}

/// Returns what is set in the process's environment, in the file `.env` of the working directory, and in
/// the files of secrets.
pub(crate) fn environment() -> Environment {
    Environment::read(Path::new(".env")).with_secret_files(&secrets())
}

/// Returns the names of the settings whose values may be in a file of their own: those that are secrets,
/// and URLs, which may hold a password or a token.
fn secrets() -> BTreeSet<String> {
    let is_secret = |setting: &&Setting| matches!(setting.values, Values::Secret(_) | Values::Url);
    let declared = Setting::all().filter(is_secret).map(|setting| setting.name.to_owned());
    let of_providers = gateways::variables().into_iter().flat_map(|(_, fields)| fields);
    let of_providers = of_providers.filter(|(field, _)| field.kind == FieldKind::Secret);
    declared.chain(of_providers.map(|(_, name)| name)).collect()
}

/// Returns a remark for each provider that has settings in `.env` and is not used. `variables` are
/// those that the file of gateways names.
fn unused(environment: &Environment, variables: &BTreeSet<String>) -> Vec<String> {
    let is_chosen = |provider: &str| {
        environment.get("GATEWAY").is_some_and(|(word, _)| word.trim() == provider)
    };
    let others = gateways::variables().into_iter().filter(|(it, _)| !is_chosen(it.name));
    let remark = |(provider, fields): (Listed, Vec<gateways::Named>)| {
        let names = fields.into_iter().map(|(_, name)| name);
        let (name, line) = names.filter(|name| !variables.contains(name)).find_map(|name| {
            match environment.get(&name)? {
                (value, Source::Line(line)) if !value.trim().is_empty() => Some((name, line)),
                _ => None,
            }
        })?;
        Some(format!(
            ".env, line {line}: {name} is not used: it is a setting of GATEWAY={}",
            provider.name
        ))
    };
    others.filter_map(remark).collect()
}

/// Returns the settings of providers that are set, and the others of the provider that is chosen.
fn shown_of_providers(environment: &Environment) -> Vec<Shown> {
    let chosen = environment.get("GATEWAY").map(|(word, _)| word.trim());
    let mut settings = Vec::new();
    for (provider, fields) in gateways::variables() {
        for (field, name) in fields {
            let set = environment.get(&name).filter(|(value, _)| !value.trim().is_empty());
            let (value, source) = match set {
                Some((value, source)) => (shown_of_field(field.kind, value), source),
                None if chosen == Some(provider.name) => {
                    (field.default.to_owned(), Source::Default)
                }
                None => continue,
            };
            settings.push(Shown { name, value, source });
        }
    }
    settings
}

fn shown_of_field(kind: FieldKind, value: &str) -> String {
    match kind {
        // A table may have secrets in it.
        FieldKind::Secret | FieldKind::Table | FieldKind::Any => MASK.to_owned(),
        FieldKind::Url | FieldKind::Address => host_of(value),
        _ => without_password(value),
    }
}

/// Returns the names of all settings, also of those that only some providers have.
pub(super) fn names() -> BTreeSet<String> {
    let of_providers = gateways::variables().into_iter().flat_map(|(_, fields)| fields);
    let declared = Setting::all().map(|setting| setting.name.to_owned());
    declared.chain(of_providers.map(|(_, name)| name)).collect()
}

fn shown(values: Values, value: &str) -> String {
    match values {
        Values::Secret(_) => MASK.to_owned(),
        Values::Url => host_of(value),
        _ => without_password(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective(process: &[(&str, &str)], file: &str) -> Effective {
        Effective::of(&Environment::of(process, file))
    }

    fn shown(effective: &Effective, name: &str) -> (String, Source) {
        let setting = effective.settings.iter().find(|it| it.name == name).unwrap();
        (setting.value.clone(), setting.source)
    }

    #[test]
    fn every_setting_is_shown_once_with_its_source() {
        let effective = effective(&[("APP_PORT", "7000"), ("LOG", " ")], "CODE_TTL=60\nLOG=info\n");

        assert!(effective.config.is_ok());
        let shown = |name| shown(&effective, name);
        assert_eq!(shown("APP_PORT"), ("7000".to_owned(), Source::Environment));
        assert_eq!(shown("CODE_TTL"), ("60".to_owned(), Source::Line(1)));
        assert_eq!(shown("CODE_LENGTH"), ("6".to_owned(), Source::Default));
        assert_eq!(shown("LIMIT_REGION"), ("off".to_owned(), Source::Default));
        assert_eq!(shown("LOG"), (String::new(), Source::Default));
        let names: BTreeSet<String> = effective.settings.iter().map(|it| it.name.clone()).collect();
        let declared = Setting::all().map(|setting| setting.name.to_owned()).collect();
        assert_eq!((&names, names.len()), (&declared, effective.settings.len()));
    }

    #[test]
    fn log_is_text_on_a_terminal_and_in_debug_mode_unless_it_is_set() {
        use LogFormat::{Json, Text};

        // Off a terminal, and on one.
        for (settings, formats) in [
            (&[][..], [Json, Text]),
            (&[("APP_MODE", "debug")], [Text, Text]),
            (&[("LOG_FORMAT", "text")], [Text, Text]),
            (&[("LOG_FORMAT", "json"), ("APP_MODE", "debug")], [Json, Json]),
            (&[("LOG_FORMAT", "xml")], [Json, Text]),
            (&[("CODE_LENGTH", "0"), ("LOG_FORMAT", "json")], [Json, Json]),
        ] {
            let effective = effective(settings, "");
            let found = [false, true].map(|is_terminal| effective.log_format(is_terminal));
            assert_eq!(found, formats, "{settings:?}");
        }
    }

    #[test]
    fn secrets_are_masked_even_if_they_are_bad() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let good = [
            ("POSTGRES_PASSWORD", key),
            ("CODE_PEPPER", &format!("p1:{key}")),
            ("PAYLOAD_KEY", &format!("p1:{key}")),
            ("EVENTS_SECRET", &format!("whsec_{key}")),
            ("TEST_NUMBERS", "+79990000000:482915"),
            ("EVENTS_URL", "https://user:hush@example.com/hook/hush"),
            ("GATEWAY_URL", "https://hush@example.com?key=hush"),
            ("PRODUCER_URL", "user:hush@kafka:9092"),
        ];
        let bad = good.map(|(name, value)| (name, format!("{value} x:hush@y")));

        for settings in [good.map(|(name, value)| (name, value.to_owned())), bad] {
            let settings = settings.each_ref().map(|(name, value)| (*name, &**value));
            let effective = effective(&settings, "");
            let shown = format!("{:?}", effective.settings);
            let said = effective.config.err().map(|error| error.to_string()).unwrap_or_default();
            for secret in ["hush", key, "482915"] {
                assert!(!shown.contains(secret), "{secret} is in {shown}");
                assert!(!said.contains(secret), "{secret} is in {said}");
            }
        }
    }

    #[test]
    fn every_secret_may_be_in_a_file() {
        let file = std::env::temp_dir().join(format!("effective-{}", std::process::id()));
        std::fs::write(&file, "a hushed text\n").unwrap();
        let path = file.to_str().unwrap();
        let settings = [
            ("GATEWAY", "twilio"),
            ("TWILIO_ACCOUNT_SID", "AC1"),
            ("TWILIO_FROM", "Shop"),
            ("TWILIO_AUTH_TOKEN_FILE", path),
            ("CODE_PEPPER_FILE", path),
            ("CODE_LENGTH_FILE", path),
        ];
        let of_file = Environment::of(&settings, "").with_secret_files(&secrets());

        let effective = Effective::of(&of_file);
        std::fs::remove_file(&file).unwrap();

        let token = shown(&effective, "TWILIO_AUTH_TOKEN");
        assert_eq!(token, (MASK.to_owned(), Source::SecretFile));
        let InvalidConfig(problems) = effective.config.unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("CODE_PEPPER cannot be used"), "{problems:?}");
        assert!(!problems[0].contains("hushed"), "{problems:?}");
        let unknown = effective.remarks.iter().filter(|it| it.contains("unknown setting"));
        assert_eq!(unknown.count(), 1, "{:?}", effective.remarks);
    }

    #[test]
    fn problems_of_the_file_precede_problems_of_values() {
        let effective = effective(&[("CODE_LENGTH", "0")], "API_AUHT=all\nA\n");

        let InvalidConfig(problems) = effective.config.unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].starts_with(".env, line 2: must be"), "{problems:?}");
        assert!(problems[1].starts_with(".env, line 1: unknown setting"), "{problems:?}");
        assert!(problems[2].starts_with("CODE_LENGTH is"), "{problems:?}");
    }

    #[test]
    fn kubernetes_service_link_does_not_change_the_embedded_default() {
        let link = "tcp://10.0.0.1:5432";
        let settings =
            [("POSTGRES_PORT", link), ("APP_PORT", link), ("PROMETHEUS_SERVER_PORT", link)];

        let effective = effective(&settings, "");

        let config = effective.config.unwrap();
        assert!(matches!(config.database, adapters_persistence::DatabaseSettings::Sqlite(_)));
        assert_eq!((config.api.port, config.process.metrics_port), (8080, None));
        assert_eq!(config.remarks.len(), 3, "{:?}", config.remarks);
    }
}
