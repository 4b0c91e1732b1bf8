//! Reads a file of gateways.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use adapters_gateway::{COMMON, Field, FieldKind};
use domain::GatewayName;
use serde_json::{Map, Value as Json};

use super::{
    GatewayConfig, GatewaysConfig, Lookup,
    document::{self, Node, Table, Value, find},
    located::Located,
    providers,
    report::{Place, Report, hint},
    routes,
};

/// The content of a file of gateways.
#[derive(Debug)]
pub struct GatewaysFile {
    /// `None`: a process would not start with the file.
    pub gateways: Option<GatewaysConfig>,
    /// The problems of the file, in the order of its lines.
    pub problems: Vec<String>,
    /// Secrets that the file names and that are not here. A process that sends needs them.
    pub missing: Vec<String>,
    /// Values that are allowed and probably not intended.
    pub remarks: Vec<String>,
    /// The variables that the file names.
    pub variables: BTreeSet<String>,
    /// The file itself, and then the files with secrets that it names.
    pub files: Vec<PathBuf>,
}

impl GatewaysFile {
    /// Reads the file at `path`. `lookup` returns the variables that it names.
    pub fn read(path: &Path, lookup: Lookup<'_>) -> Self {
        match fs::read_to_string(path) {
            Ok(text) => Self::of(path, &text, lookup),
            Err(error) => {
                Self::unreadable(path, format!("{} cannot be read: {error}", path.display()))
            }
        }
    }

    /// Reads the `text` of the file at `path`.
    pub(super) fn of(path: &Path, text: &str, lookup: Lookup<'_>) -> Self {
        let mut reading = Reading {
            lookup,
            text,
            folder: path.parent().unwrap_or(Path::new("")),
            report: Report::of(&path.display().to_string()),
            variables: BTreeSet::new(),
            files: Vec::new(),
            misses_secret: false,
            is_broken: false,
        };
        let gateways = reading.document();
        let Reading { report, variables, files, .. } = reading;
        let is_good = !report.has_problems();
        let [problems, missing, remarks] = report.into_lines();
        let files: Vec<PathBuf> = [path.to_owned()].into_iter().chain(files).collect();
        let gateways = gateways.filter(|_| is_good).map(|gateways| GatewaysConfig {
            missing: missing.clone(),
            files: files.clone(),
            ..gateways
        });
        Self { gateways, problems, missing, remarks, variables, files }
    }

    fn unreadable(path: &Path, problem: String) -> Self {
        Self {
            gateways: None,
            problems: vec![problem],
            missing: Vec::new(),
            remarks: Vec::new(),
            variables: BTreeSet::new(),
            files: vec![path.to_owned()],
        }
    }
}

struct Reading<'a> {
    lookup: Lookup<'a>,
    /// The text of the file.
    text: &'a str,
    /// Paths in the file are relative to its folder.
    folder: &'a Path,
    report: Report,
    variables: BTreeSet<String>,
    /// The files with secrets.
    files: Vec<PathBuf>,
    /// Whether the field that is being read names a secret that is not here.
    misses_secret: bool,
    /// Whether a part of the file could not be parsed. What seems to be missing may stand there.
    is_broken: bool,
}

/// Stands for a secret that is not here, while the other fields are checked. It is good as a text, in
/// hexadecimal digits and in base64, so that no other field seems to be wrong because of it.
const PLACEHOLDER: &str = "00000000";

/// The tables that send their entries to the provider.
const SENT: [&str; 3] = ["headers", "query", "body"];

impl Reading<'_> {
    fn document(&mut self) -> Option<GatewaysConfig> {
        let (document, errors) = document::parse(self.text);
        self.is_broken = !errors.is_empty();
        for (line, error) in errors {
            self.report.problem(Place { line, table: "" }, error);
        }
        let top = Place { line: 1, table: "" };
        self.report.refuse_unknown(top, &document, &["gateway", "route", "failover", "health"]);
        let gateways = self.gateways(&document);
        if self.is_broken && gateways.is_empty() {
            return None;
        }
        let routes = routes::read(&mut self.report, &document, &gateways);
        let code_ttl = self.code_ttl();
        let failover = routes::failover(&mut self.report, &document, code_ttl);
        let gateways: Vec<_> = gateways.into_iter().map(|(gateway, _)| gateway).collect();
        if let Some((_, line)) = failover.no_receipt_within {
            self.check_receipts(Place { line, table: "[failover]" }, &gateways);
        }
        Some(GatewaysConfig {
            gateways,
            routes,
            ambiguous: failover.ambiguous,
            no_receipt_within: failover.no_receipt_within.map(|(within, _)| within),
            weights: routes::weights(&mut self.report, &document),
            ..GatewaysConfig::default()
        })
    }

    fn code_ttl(&self) -> Duration {
        /// The default of `CODE_TTL`.
        const DEFAULT: u64 = 600;
        let seconds = (self.lookup)("CODE_TTL").and_then(|text| text.trim().parse().ok());
        Duration::from_secs(seconds.unwrap_or(DEFAULT))
    }

    /// Refuses to await receipts that no gateway reports.
    fn check_receipts(&mut self, place: Place<'_>, gateways: &[GatewayConfig]) {
        /// Any provider would report there.
        const SOME: &str = "https://a.example";
        if self.report.has_problems() {
            return;
        }
        let public_url = (self.lookup)("PUBLIC_URL").filter(|url| !url.trim().is_empty());
        let url = public_url.as_deref().map(str::trim);
        let reported = |url| gateways.iter().any(|gateway| gateway.may_report(url));
        if !reported(Some(SOME)) {
            let words = "no_receipt_within needs a gateway that reports deliveries, and none does";
            self.report.problem(place, words);
        } else if url.is_some() && !reported(url) {
            let words = "no_receipt_within needs a PUBLIC_URL that a provider takes: some want \
                         https:// and a short one";
            self.report.problem(place, words);
        } else if !reported(url) {
            let words = "no_receipt_within needs PUBLIC_URL: without it, no gateway of the file \
                         reports deliveries";
            self.report.problem(place, words);
        }
    }

    /// Reads each `[gateway.NAME]`, with its line. A bad one is there too, so that routes find it.
    fn gateways(&mut self, document: &Table) -> Vec<(GatewayConfig, usize)> {
        let form = "needs a table [gateway.NAME] for each gateway";
        let (line, tables) = match find(document, "gateway") {
            Some(Node { line, value: Value::Table(tables) }) => (*line, tables.as_slice()),
            Some(Node { line, .. }) => (*line, &[][..]),
            None => (1, &[][..]),
        };
        if tables.is_empty() && !self.is_broken {
            self.report.problem(Place { line, table: "" }, format!("the file {form}"));
        }
        let mut gateways = Vec::new();
        for (key, Node { line, value }) in tables {
            let table = format!("[gateway.{key}]");
            let place = Place { line: *line, table: &table };
            let name: GatewayName = match key.parse() {
                Ok(name) => name,
                Err(error) => {
                    self.report.problem(place, format!("has a bad name: {error}"));
                    continue;
                }
            };
            match value {
                Value::Table(table) => gateways.push((self.gateway(place, name, table), *line)),
                _ => self.report.problem(place, "must be a table"),
            }
        }
        gateways
    }

    fn gateway(&mut self, place: Place<'_>, name: GatewayName, table: &Table) -> GatewayConfig {
        let mut gateway =
            GatewayConfig { name, provider: "", table: Map::new(), misses_secrets: false };
        let Some(provider) = self.provider(place, table) else { return gateway };
        gateway.provider = provider;
        let fields = providers::fields_of(provider);
        let mut known = vec!["provider"];
        known.extend(fields.iter().map(|field| field.name));
        self.report.refuse_unknown(place, table, &known);
        let mut missing = Vec::new();
        let mut checked = gateway.clone();
        for (key, node) in table {
            let Some(field) = fields.iter().find(|field| field.name == key) else { continue };
            self.misses_secret = false;
            let value = self.field(place.at(node.line), field, &node.value);
            checked.table.extend(value.clone().map(|value| (key.clone(), value)));
            match value.filter(|_| !self.misses_secret) {
                Some(value) => {
                    gateway.table.insert(key.clone(), value);
                }
                None => missing.push(field.name),
            }
        }
        gateway.misses_secrets = !missing.is_empty();
        for (field, problem) in checked.problems() {
            let root = field.split(['.', '[']).next().unwrap_or_default();
            let is_known = missing.iter().any(|it| *it == field)
                || self.is_broken && find(table, root).is_none();
            if !is_known {
                let located = Located::of(place, table, &field, self.text);
                let place = Place { line: located.line, table: &located.table };
                self.report.problem(place, located.words(&problem));
            }
        }
        self.remark_settings_among_entries(place, table);
        gateway
    }

    /// In TOML, each line below the header of a table belongs to that table. A setting that was added at
    /// the end of a gateway may therefore have become a header of its requests.
    fn remark_settings_among_entries(&mut self, place: Place<'_>, table: &Table) {
        for name in SENT {
            let Some(Node { value: Value::Table(entries), .. }) = find(table, name) else {
                continue;
            };
            let header = Located::of(place, table, name, self.text).table;
            let is_setting = |key: &String| COMMON.iter().any(|field| field.name == key);
            let is_below = header != place.table;
            for (key, node) in entries.iter().filter(|(key, _)| is_below && is_setting(key)) {
                self.report.remark(
                    Place { line: node.line, table: &header },
                    format!(
                        "{key} is sent to the provider. If you mean the setting {key} of the gateway, \
                         move the line above {header}"
                    ),
                );
            }
        }
    }

    fn provider(&mut self, place: Place<'_>, table: &Table) -> Option<&'static str> {
        let words = providers::words();
        let Some(Node { line, value }) = find(table, "provider") else {
            if !self.is_broken {
                let words = words.join(", ");
                self.report.problem(place, format!("provider is missing: one of {words}"));
            }
            return None;
        };
        let place = place.at(*line);
        let Value::Text(word) = value else {
            self.report.problem(place, format!("provider must be one of {}", words.join(", ")));
            return None;
        };
        let found = words.iter().copied().find(|known| known == word);
        if found.is_none() {
            let hint = hint(word, &words);
            self.report.problem(place, format!("there is no provider {word:?}{hint}"));
        }
        found
    }

    /// Returns the value of a field; `None` if a problem was noted. A secret that is not here is noted,
    /// and [`PLACEHOLDER`] stands for it.
    fn field(&mut self, place: Place<'_>, field: &Field, value: &Value) -> Option<Json> {
        let name = field.name;
        match (value, field.kind) {
            (Value::Table(table), FieldKind::Table | FieldKind::Any) => {
                self.object(place, name, table)
            }
            _ => self.value(place, name, value),
        }
    }

    fn value(&mut self, place: Place<'_>, name: &str, value: &Value) -> Option<Json> {
        match value {
            Value::Text(text) => Some(text.clone().into()),
            Value::Number(number) => Some(number.clone().into()),
            Value::Boolean(is) => Some((*is).into()),
            Value::List(items) => {
                let items = items.iter().map(|it| self.value(place.at(it.line), name, &it.value));
                // Not collected at once: each has its own problems.
                let items: Vec<_> = items.collect();
                items.into_iter().collect::<Option<Vec<Json>>>().map(Json::from)
            }
            Value::Table(table) => self.reference_or_object(place, name, table),
            Value::Other => {
                self.report.problem(place, format!("{name} is {}", value.kind()));
                None
            }
        }
    }

    fn object(&mut self, place: Place<'_>, name: &str, table: &Table) -> Option<Json> {
        let entries = table.iter().map(|(key, node)| {
            let value = self.value(place.at(node.line), &format!("{name}.{key}"), &node.value)?;
            Some((key.clone(), value))
        });
        let entries: Vec<_> = entries.collect();
        entries.into_iter().collect::<Option<Map<String, Json>>>().map(Json::from)
    }

    /// Reads `{ env = "NAME" }` and `{ file = "PATH" }`, and another table as it is.
    fn reference_or_object(&mut self, place: Place<'_>, name: &str, table: &Table) -> Option<Json> {
        let is_reference = table.iter().any(|(key, _)| key == "env" || key == "file");
        if !is_reference {
            return self.object(place, name, table);
        }
        match table.as_slice() {
            [(key, Node { value: Value::Text(of), .. })] if key == "env" => {
                self.variable(place, name, of)
            }
            [(key, Node { value: Value::Text(of), .. })] if key == "file" => {
                Some(self.secret_file(place, name, of))
            }
            _ => {
                self.report.problem(
                    place,
                    format!("{name} must be a text, {{ env = \"NAME\" }} or {{ file = \"PATH\" }}"),
                );
                None
            }
        }
    }

    fn variable(&mut self, place: Place<'_>, name: &str, variable: &str) -> Option<Json> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if variable.is_empty() || !variable.bytes().all(is_name) {
            // It is not shown: a secret may stand there by mistake.
            self.report.problem(place, format!("{name} has an env that is no name of a variable"));
            return None;
        }
        self.variables.insert(variable.to_owned());
        let value = (self.lookup)(variable).filter(|value| !value.trim().is_empty());
        Some(value.map_or_else(
            || {
                let reason = "which is set neither in the environment nor in .env";
                self.missing(place, format!("{name} is {{ env = {variable:?} }}, {reason}"))
            },
            Json::from,
        ))
    }

    /// Notes a secret that is not here, and returns what stands for it.
    fn missing(&mut self, place: Place<'_>, words: String) -> Json {
        self.misses_secret = true;
        self.report.missing(place, words);
        PLACEHOLDER.into()
    }

    fn secret_file(&mut self, place: Place<'_>, name: &str, path: &str) -> Json {
        let path = self.folder.join(path);
        let shown = path.display().to_string();
        self.files.push(path.clone());
        let reason = match fs::read_to_string(&path) {
            Ok(text) if text.trim().is_empty() => "which is empty".to_owned(),
            Ok(text) => return text.trim_end_matches(['\r', '\n']).into(),
            Err(error) => format!("which cannot be read: {error}"),
        };
        self.missing(place, format!("{name} is {{ file = {shown:?} }}, {reason}"))
    }
}
