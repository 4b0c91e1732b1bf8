//! The statements that the service sends to PostgreSQL, read from the server's log.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use anyhow::{Context, ensure};

/// Statements in the order of their execution.
#[derive(Debug)]
pub struct Statements(Vec<Statement>);

/// The log of a server, from some moment on.
#[derive(Debug)]
pub struct Log(File);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Statement {
    process: String,
    sql: String,
    /// Literals by place: the first is `$1`.
    parameters: Vec<String>,
}

impl Log {
    pub fn from_now_on(path: &Path) -> anyhow::Result<Self> {
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// Returns the log since then.
    pub fn read(mut self) -> anyhow::Result<String> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Statements {
    /// Returns the transactions in which a parameter is one of `subjects`, alone or as the only
    /// element of a list. The server must log all statements, with the prefix `%m [%p] `.
    pub fn about(subjects: &[&str], log: &str) -> anyhow::Result<Self> {
        let literals: Vec<String> =
            subjects.iter().flat_map(|subject| [alone(subject), listed(subject)]).collect();
        let is_about = |it: &Statement| it.parameters.iter().any(|it| literals.contains(it));
        let transactions = transactions(statements(log)).into_iter();
        let kept = transactions.filter(|transaction| transaction.iter().any(is_about));
        let kept: Vec<Statement> = kept.flatten().collect();
        ensure!(
            !kept.is_empty(),
            "the server's log has no statement about {}",
            subjects.join(", ")
        );
        Ok(Self(kept))
    }

    /// Returns a script with the parameters of the log, some of them replaced by expressions.
    pub fn with(&self, expressions: &[(&str, &str)]) -> String {
        let script = self.0.iter().map(|Statement { sql, parameters, .. }| {
            let value = |place: usize| {
                let literal = parameters.get(place - 1)?;
                let meant = expressions.iter().find_map(|(value, expression)| {
                    let is_listed = *literal == listed(value);
                    let is_meant = is_listed || *literal == alone(value);
                    let whole = || {
                        if is_listed {
                            format!("ARRAY[{expression}]")
                        } else {
                            (*expression).to_owned()
                        }
                    };
                    is_meant.then(whole)
                });
                Some(meant.unwrap_or_else(|| literal.clone()))
            };
            fill_in(sql, value) + ";\n"
        });
        script.collect()
    }
}

fn alone(value: &str) -> String {
    format!("'{value}'")
}

fn listed(value: &str) -> String {
    format!("'{{{value}}}'")
}

fn statements(log: &str) -> Vec<Statement> {
    let mut statements: Vec<Statement> = Vec::new();
    for entry in entries(log) {
        let Some((process, text)) = parts(&entry) else { continue };
        if let Some(list) = text.strip_prefix("DETAIL:  parameters: ") {
            let of_process = |it: &&mut Statement| it.process == process;
            if let Some(statement) = statements.iter_mut().rfind(of_process) {
                statement.parameters = literals(list);
            }
        } else if let Some(sql) = statement(text) {
            let (process, sql) = (process.to_owned(), sql.to_owned());
            statements.push(Statement { process, sql, parameters: Vec::new() });
        }
    }
    statements
}

/// Joins the lines of each entry. Further lines of an entry begin with a tab.
fn entries(log: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        match (line.strip_prefix('\t'), entries.last_mut()) {
            (Some(more), Some(entry)) => {
                entry.push('\n');
                entry.push_str(more);
            }
            _ => entries.push(line.to_owned()),
        }
    }
    entries
}

/// Returns the process and the text of "2026-11-22 22:05:05.022 UTC [8928] LOG:  …".
fn parts(entry: &str) -> Option<(&str, &str)> {
    entry.split_once('[')?.1.split_once("] ")
}

/// Returns a statement of the simple protocol, or of the extended one, in which it has a name.
fn statement(text: &str) -> Option<&str> {
    let text = text.strip_prefix("LOG:  ")?;
    let prepared = || Some(text.strip_prefix("execute ")?.split_once(':')?.1);
    text.strip_prefix("statement:").or_else(prepared).map(str::trim)
}

/// Reads "$1 = 'it''s', $2 = NULL".
fn literals(list: &str) -> Vec<String> {
    let mut literals = vec![String::new()];
    let mut is_quoted = false;
    for next in list.chars() {
        is_quoted ^= next == '\'';
        match literals.last_mut() {
            Some(literal) if next != ',' || is_quoted => literal.push(next),
            _ => literals.push(String::new()),
        }
    }
    let value = |text: &str| Some(text.split_once(" = ")?.1.to_owned());
    literals.iter().filter_map(|text| value(text)).collect()
}

/// Groups statements by transaction: BEGIN to COMMIT or ROLLBACK, or one statement alone.
fn transactions(statements: Vec<Statement>) -> Vec<Vec<Statement>> {
    let mut open: BTreeMap<String, Vec<Statement>> = BTreeMap::new();
    let mut whole = Vec::new();
    for statement in statements {
        let is = |words: &[&str]| words.iter().any(|word| statement.sql.eq_ignore_ascii_case(word));
        let process = statement.process.clone();
        if is(&["BEGIN"]) {
            open.insert(process, vec![statement]);
        } else if is(&["COMMIT", "ROLLBACK"]) {
            let mut transaction = open.remove(&process).unwrap_or_default();
            transaction.push(statement);
            whole.push(transaction);
        } else if let Some(transaction) = open.get_mut(&process) {
            transaction.push(statement);
        } else {
            whole.push(vec![statement]);
        }
    }
    whole
}

/// Replaces `$1` and so on by values.
fn fill_in(sql: &str, value: impl Fn(usize) -> Option<String>) -> String {
    let mut parts = sql.split('$');
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|next: char| !next.is_ascii_digit()).unwrap_or(part.len());
        let (place, rest) = part.split_at(end);
        if let Some(value) = place.parse().ok().and_then(&value) {
            filled.push_str(&value);
        } else {
            filled.push('$');
            filled.push_str(place);
        }
        filled.push_str(rest);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-22 22:05:05.022 UTC [7] LOG:  statement: BEGIN
2026-11-22 22:05:05.023 UTC [8] LOG:  execute sqlx_s_1: SELECT 1
2026-11-22 22:05:05.024 UTC [7] LOG:  execute sqlx_s_2: 
\tSELECT it
\tFROM there
\tWHERE id = $1 AND name = $2 AND $10 IS NULL
2026-11-22 22:05:05.024 UTC [7] DETAIL:  parameters: $1 = 'a-1', $2 = 'it''s, so'
2026-11-22 22:05:05.025 UTC [7] LOG:  execute sqlx_s_3: UPDATE there SET name = $1
2026-11-22 22:05:05.025 UTC [7] DETAIL:  parameters: $1 = NULL
2026-11-22 22:05:05.026 UTC [7] LOG:  statement: COMMIT
2026-11-22 22:05:05.027 UTC [8] LOG:  execute sqlx_s_1: SELECT $1
2026-11-22 22:05:05.027 UTC [8] DETAIL:  parameters: $1 = 'b-2'
";

    #[test]
    fn a_transaction_is_kept_whole_and_other_statements_are_not() {
        let statements = Statements::about(&["a-1"], LOG).unwrap();

        let script = statements.with(&[("a-1", "md5(:row)")]);

        assert_eq!(
            script,
            "BEGIN;\n\
             SELECT it\nFROM there\nWHERE id = md5(:row) AND name = 'it''s, so' AND $10 IS NULL;\n\
             UPDATE there SET name = NULL;\n\
             COMMIT;\n"
        );
    }

    #[test]
    fn a_list_of_one_becomes_a_list_of_the_expression() {
        let log = LOG.replace("$1 = 'b-2'", "$1 = '{b-2}'");

        let statements = Statements::about(&["b-2"], &log).unwrap();

        assert_eq!(statements.with(&[("b-2", "md5(:row)")]), "SELECT ARRAY[md5(:row)];\n");
    }

    #[test]
    fn a_statement_outside_of_a_transaction_is_one() {
        let statements = Statements::about(&["b-2"], LOG).unwrap();

        assert_eq!(statements.with(&[]), "SELECT 'b-2';\n");
    }

    #[test]
    fn a_log_without_the_subject_is_an_error() {
        assert!(Statements::about(&["c-3"], LOG).is_err());
    }
}
