//! The settings as text: the process's environment, and below it the file `.env`.

mod dotenv;
mod names;
mod secret_files;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fmt, fs, io,
    path::Path,
};

pub(crate) use self::secret_files::is_readable_by_others;
use self::{dotenv::DotEnv, secret_files::SecretFiles};

/// The values that are set, before they are parsed.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    process: HashMap<String, String>,
    /// Names that Kubernetes sets for its services. They are not settings.
    links: BTreeSet<String>,
    /// Names that are set in the process to a value that is not Unicode.
    unreadable: BTreeSet<String>,
    file: DotEnv,
    secret_files: SecretFiles,
}

/// The source of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Default,
    Environment,
    /// A line of `.env`.
    Line(usize),
    /// The file that `<NAME>_FILE` names.
    SecretFile,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment => f.write_str("environment"),
            Self::Line(line) => write!(f, ".env line {line}"),
            Self::SecretFile => f.write_str("secret file"),
        }
    }
}

impl Environment {
    /// Reads both. The file may be missing.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub(crate) fn read(file: &Path) -> Self {
        let file = match fs::read(file) {
            Ok(bytes) => DotEnv::parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => DotEnv::default(),
            Err(error) => {
                let problems = vec![format!(".env cannot be read: {error}")];
                DotEnv { problems, ..DotEnv::default() }
            }
        };
        Self::new(std::env::vars_os(), file)
    }

    /// Returns whether the user asks for no colours: <https://no-color.org>.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub(crate) fn asks_for_no_colours() -> bool {
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
    }

    fn new(process: impl IntoIterator<Item = (OsString, OsString)>, file: DotEnv) -> Self {
        let mut environment = Self { file, ..Self::default() };
        for (name, value) in process {
            // The names of all settings are ASCII.
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => {
                    environment.process.insert(name, value);
                }
                Err(_) => {
                    environment.unreadable.insert(name);
                }
            }
        }
        environment.links = names::of_links(&environment.process);
        environment
    }

    #[cfg(test)]
    pub(crate) fn of(process: &[(&str, &str)], file: &str) -> Self {
        let process = process.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Self::new(process, DotEnv::parse(file.as_bytes()))
    }

    /// Reads the secrets of these names that are in files.
    pub(crate) fn with_secret_files(self, secrets: &BTreeSet<String>) -> Self {
        let secret_files =
            SecretFiles::read(secrets, |name| self.get(name).map(|(value, _)| value));
        Self { secret_files, ..self }
    }

    /// Returns a value and its source. The environment wins.
    pub(crate) fn get(&self, name: &str) -> Option<(&str, Source)> {
        if let Some(value) = self.secret_files.values.get(name) {
            return Some((value, Source::SecretFile));
        }
        let set = self.process.get(name).filter(|_| !self.links.contains(name));
        if let Some(value) = set {
            return Some((without_quotes(value), Source::Environment));
        }
        let entry = self.file.entries.iter().find(|entry| entry.name == name)?;
        Some((&entry.value, Source::Line(entry.line)))
    }

    /// Returns what is wrong with the file and the names, whatever the values mean. `settings` are
    /// the names of all settings.
    pub(crate) fn problems(&self, settings: &BTreeSet<String>) -> Vec<String> {
        let mut problems = self.file.problems.clone();
        problems.extend(self.secret_files.problems.iter().cloned());
        let unreadable = self.unreadable.intersection(settings);
        problems.extend(unreadable.map(|name| format!("{name} is not UTF-8")));
        for entry in &self.file.entries {
            let line = entry.line;
            // A closing quote is missing, so that a later quote ended the value.
            if let Some(name) = entry.swallowed.iter().find(|name| settings.contains(*name)) {
                problems.push(format!(
                    ".env, line {line}: the value continues on a line that sets {name}: close the \
                     quote"
                ));
            }
            // It would be ignored, and an API that an operator closed would stay open.
            if let Some(meant) = names::misspelt(&entry.name, settings) {
                let name = &entry.name;
                problems.push(format!(
                    ".env, line {line}: unknown setting {name}: did you mean {meant}?"
                ));
            }
        }
        problems
    }

    /// Returns what is allowed and probably not meant.
    pub(crate) fn warnings(&self, settings: &BTreeSet<String>) -> Vec<String> {
        let mut warnings = self.file.warnings.clone();
        warnings.extend(self.secret_files.warnings.iter().cloned());
        let nearest = |name: &str| {
            let nearest = names::nearest(name, settings);
            nearest.map_or_else(String::new, |nearest| format!("; the nearest is {nearest}"))
        };
        for entry in &self.file.entries {
            let (name, line) = (&entry.name, entry.line);
            let is_told = names::misspelt(name, settings).is_some();
            if !settings.contains(name) && !is_told && !names::is_of_another(name) {
                let nearest = nearest(name);
                warnings.push(format!(".env, line {line}: unknown setting {name}{nearest}"));
            }
        }
        let mut process: Vec<&String> = self.process.keys().chain(&self.unreadable).collect();
        process.sort_unstable();
        for name in process {
            if self.links.contains(name) {
                if settings.contains(name) {
                    warnings.push(format!(
                        "{name} was set by Kubernetes for a service of that name, and is ignored; \
                         enableServiceLinks: false in the pod's spec keeps such variables away"
                    ));
                }
            } else if !settings.contains(name) && names::looks_like_ours(name, settings) {
                let nearest = nearest(name);
                warnings.push(format!("environment: unknown setting {name}{nearest}"));
            }
        }
        warnings
    }
}

/// Returns the name of the setting for the file of each secret.
pub(crate) fn path_names(secrets: &BTreeSet<String>) -> impl Iterator<Item = String> {
    secrets.iter().map(|secret| secret_files::path_name(secret))
}

/// Removes one pair of quotes around a value, which `docker run --env-file` leaves there. Quotes that
/// belong to the value, as in `"Code" {code} "x"`, have others between them.
fn without_quotes(value: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| {
            let inner = value.strip_prefix(quote)?.strip_suffix(quote)?;
            (!inner.contains(quote)).then_some(inner)
        })
        .unwrap_or(value)
}

#[cfg(test)]
pub(crate) fn parse(text: &str) -> (HashMap<String, String>, Vec<String>) {
    let DotEnv { entries, problems, .. } = DotEnv::parse(text.as_bytes());
    (entries.into_iter().map(|entry| (entry.name, entry.value)).collect(), problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(process: &[(&str, &str)], file: &str) -> Environment {
        Environment::of(process, file)
    }

    fn settings() -> BTreeSet<String> {
        [
            "API_AUTH",
            "APP_PORT",
            "POSTGRES_PORT",
            "POSTGRES_PASSWORD",
            "LIMIT_IP",
            "LIMIT_KEY",
            "PROMETHEUS_SERVER_PORT",
            "LOG",
            "GUARD",
        ]
        .map(str::to_owned)
        .into()
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let environment = environment(&[("A", "process"), ("B", "")], "A=file\nB=file\nC=file\n");

        assert_eq!(environment.get("A"), Some(("process", Source::Environment)));
        assert_eq!(environment.get("B"), Some(("", Source::Environment)));
        assert_eq!(environment.get("C"), Some(("file", Source::Line(3))));
        assert_eq!(environment.get("D"), None);
    }

    #[test]
    fn one_pair_of_quotes_is_removed_in_the_environment_only() {
        for (value, expected) in [
            ("\"message\"", "message"),
            ("'it is'", "it is"),
            ("\"it's\"", "it's"),
            ("\"Code\" {code} \"x\"", "\"Code\" {code} \"x\""),
            ("\"a", "\"a"),
            ("\"", "\""),
            ("'a\"", "'a\""),
        ] {
            let environment = environment(&[("A", value)], "B='\"message\"'\n");
            assert_eq!(environment.get("A").unwrap().0, expected);
            assert_eq!(environment.get("B").unwrap().0, "\"message\"");
        }
    }

    #[test]
    fn misspelt_name_in_the_file_is_an_error() {
        let file = "API_AUHT=all\napi_auth=all\nLIMIT_KEYS=1/1h\nGAURD=off\nSHOP_NAME=x\n\
                    COMPOSE_PROJECT_NAME=x\nPOSTGRES_PASS=secret\nLOGS=x\nAPP_PORT=1\n";
        let environment = environment(&[], file);

        assert_eq!(
            environment.problems(&settings()),
            [
                ".env, line 1: unknown setting API_AUHT: did you mean API_AUTH?",
                ".env, line 2: unknown setting api_auth: did you mean API_AUTH?",
                ".env, line 3: unknown setting LIMIT_KEYS: did you mean LIMIT_KEY?",
                ".env, line 4: unknown setting GAURD: did you mean GUARD?",
            ]
        );
        let warnings = environment.warnings(&settings());
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        let expected = [
            "line 5: unknown setting SHOP_NAME",
            "line 7: unknown setting POSTGRES_PASS; the nearest is POSTGRES_PASSWORD",
            "line 8: unknown setting LOGS; the nearest is LOG",
        ];
        for expected in expected {
            assert!(warnings.iter().any(|it| it.contains(expected)), "{expected}: {warnings:?}");
        }
    }

    #[test]
    fn unknown_names_of_the_environment_are_reported_only_if_they_resemble_settings() {
        let theirs = [
            ("PATH", "/bin"),
            ("HOME", "/root"),
            ("LANG", "C"),
            ("PWD", "/"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("KUBERNETES_PORT", "tcp://10.0.0.1:443"),
            ("POSTGRES_INITDB_ARGS", "--data-checksums"),
            ("APP_NAME", "shop"),
            ("RUST_BACKTRACE", "1"),
            ("API_PORT", "tcp://10.0.0.2:80"),
            ("API_PORT_80_TCP_ADDR", "10.0.0.2"),
            ("API_SERVICE_HOST", "10.0.0.2"),
            ("LIMIT_SERVICE_HOST", "10.0.0.2"),
            ("LIMIT_SERVICE_PORT", "80"),
        ];
        assert_eq!(environment(&theirs, "").warnings(&settings()), [""; 0]);

        let ours = [("API_AUHT", "all"), ("LIMIT_DEVICE", "5/1d"), ("POSTGRES_PASSWORD_FILE", "x")];
        let environment = environment(&ours, "");
        assert_eq!(environment.problems(&settings()), [""; 0]);
        assert_eq!(
            environment.warnings(&settings()),
            [
                "environment: unknown setting API_AUHT; the nearest is API_AUTH",
                "environment: unknown setting LIMIT_DEVICE; the nearest is LIMIT_IP",
                "environment: unknown setting POSTGRES_PASSWORD_FILE; the nearest is \
                 POSTGRES_PASSWORD",
            ]
        );
    }

    #[test]
    fn variables_of_kubernetes_services_are_not_settings() {
        for value in ["tcp://10.0.0.1:5432", "udp://10.0.0.1:53", "sctp://[fd00::1]:5432"] {
            for name in ["POSTGRES_PORT", "APP_PORT", "PROMETHEUS_SERVER_PORT"] {
                let linked = environment(&[(name, value)], "");
                assert_eq!(linked.get(name), None, "{name}={value}");
                let warnings = linked.warnings(&settings());
                let says = format!("{name} was set by Kubernetes");
                assert!(warnings.len() == 1 && warnings[0].starts_with(&says), "{warnings:?}");

                let below = environment(&[(name, value)], &format!("{name}=7000"));
                assert_eq!(below.get(name), Some(("7000", Source::Line(1))));
            }
        }
        for value in ["5432", "http://10.0.0.1:5432", "tcp://10.0.0.1", "tcp://", "tcp://a:b"] {
            let set = environment(&[("POSTGRES_PORT", value)], "");
            assert_eq!(set.get("POSTGRES_PORT"), Some((value, Source::Environment)));
        }
    }

    #[test]
    fn setting_that_is_not_utf_8_is_an_error() {
        use std::os::unix::ffi::OsStringExt;

        let bytes = || OsString::from_vec(b"all\xff".to_vec());
        let process = [("API_AUTH".into(), bytes()), ("OTHER".into(), bytes())];
        let environment = Environment::new(process, DotEnv::default());

        assert_eq!(environment.problems(&settings()), ["API_AUTH is not UTF-8"]);
    }

    #[test]
    fn value_that_runs_into_a_setting_is_an_error() {
        let environment = environment(&[], "LOG=\"info\nAPI_AUTH=all\nGUARD=off\"\nX='a\nY=b\n'");

        assert_eq!(
            environment.problems(&settings()),
            [".env, line 1: the value continues on a line that sets API_AUTH: close the quote"]
        );
    }
}
