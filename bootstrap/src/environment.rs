//! The settings as text: the process's environment, and below it the file `.env`.

mod dotenv;
mod names;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fmt, fs, io,
    path::Path,
};

use self::dotenv::DotEnv;

/// What is set, before anything of it is understood.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    process: HashMap<String, String>,
    /// The names that Kubernetes set for its services, which are no settings.
    links: BTreeSet<String>,
    /// Set in the process, and not Unicode.
    unreadable: BTreeSet<String>,
    file: DotEnv,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Default,
    Environment,
    /// Of `.env`.
    Line(usize),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment => f.write_str("environment"),
            Self::Line(line) => write!(f, ".env line {line}"),
        }
    }
}

impl Environment {
    /// Reads both. A file that is not there is no problem.
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

    fn new(process: impl IntoIterator<Item = (OsString, OsString)>, file: DotEnv) -> Self {
        let mut environment = Self { file, ..Self::default() };
        for (name, value) in process {
            // What we read has names in ASCII.
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

    /// A value and where it comes from. The environment wins.
    pub(crate) fn get(&self, name: &str) -> Option<(&str, Source)> {
        let set = self.process.get(name).filter(|_| !self.links.contains(name));
        if let Some(value) = set {
            return Some((without_quotes(value), Source::Environment));
        }
        let entry = self.file.entries.iter().find(|entry| entry.name == name)?;
        Some((&entry.value, Source::Line(entry.line)))
    }

    /// What is wrong with what is set, whatever the values mean. `settings` are the names that are
    /// read.
    pub(crate) fn problems(&self, settings: &BTreeSet<String>) -> Vec<String> {
        let mut problems = self.file.problems.clone();
        let unreadable = self.unreadable.intersection(settings);
        problems.extend(unreadable.map(|name| format!("{name} is not UTF-8")));
        for entry in &self.file.entries {
            let line = entry.line;
            // A quote was forgotten, and another one ended the value.
            if let Some(name) = entry.swallowed.iter().find(|name| settings.contains(*name)) {
                problems.push(format!(
                    ".env, line {line}: the value goes on to a line that sets {name}: a quote is \
                     not closed"
                ));
            }
            // It would be ignored, and an API that somebody closed would stay open.
            if let Some(meant) = names::misspelt(&entry.name, settings) {
                let name = &entry.name;
                problems.push(format!(
                    ".env, line {line}: unknown setting {name}: did you mean {meant}?"
                ));
            }
        }
        problems
    }

    /// What is allowed and probably not meant.
    pub(crate) fn warnings(&self, settings: &BTreeSet<String>) -> Vec<String> {
        let mut warnings = self.file.warnings.clone();
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

/// `docker run --env-file` leaves quotes round a value. Those that belong to it, as in
/// `"Code" {code} "x"`, have others between them.
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
    fn one_pair_of_quotes_is_taken_off_in_the_environment_only() {
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
    fn a_misspelt_name_in_the_file_is_an_error() {
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
    fn only_names_like_ours_are_reported_of_the_environment() {
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
    fn what_kubernetes_sets_for_a_service_is_no_setting() {
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
    fn a_value_that_is_not_utf_8_is_an_error_if_it_is_read() {
        use std::os::unix::ffi::OsStringExt;

        let bytes = || OsString::from_vec(b"all\xff".to_vec());
        let process = [("API_AUTH".into(), bytes()), ("OTHER".into(), bytes())];
        let environment = Environment::new(process, DotEnv::default());

        assert_eq!(environment.problems(&settings()), ["API_AUTH is not UTF-8"]);
    }

    #[test]
    fn a_value_that_swallows_a_setting_is_an_error() {
        let environment = environment(&[], "LOG=\"info\nAPI_AUTH=all\nGUARD=off\"\nX='a\nY=b\n'");

        assert_eq!(
            environment.problems(&settings()),
            [".env, line 1: the value goes on to a line that sets API_AUTH: a quote is not closed"]
        );
    }
}
