//! The findings, and their forms.

use serde_json::{Value, json};

/// The state of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ok,
    /// The service works, perhaps not as intended.
    Warning,
    /// The service cannot work.
    Failure,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) state: State,
    pub(super) subject: &'static str,
    pub(super) text: String,
    /// What the operator can do, or empty.
    pub(super) advice: String,
}

#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }

    /// Returns the escape sequence of the state's colour on a terminal.
    const fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\u{1b}[32m",
            Self::Warning => "\u{1b}[33m",
            Self::Failure => "\u{1b}[31m",
        }
    }
}

impl Findings {
    pub(super) fn ok(&mut self, subject: &'static str, text: impl AsRef<str>) {
        self.add(State::Ok, subject, text.as_ref(), "");
    }

    pub(super) fn warn(&mut self, subject: &'static str, text: impl AsRef<str>, advice: &str) {
        self.add(State::Warning, subject, text.as_ref(), advice);
    }

    pub(super) fn fail(&mut self, subject: &'static str, text: impl AsRef<str>, advice: &str) {
        self.add(State::Failure, subject, text.as_ref(), advice);
    }

    fn add(&mut self, state: State, subject: &'static str, text: &str, advice: &str) {
        let text = text.replace(['\n', '\t'], " ");
        self.0.push(Finding { state, subject, text, advice: advice.to_owned() });
    }

    pub(super) fn has_failures(&self) -> bool {
        self.0.iter().any(|finding| finding.state == State::Failure)
    }

    /// Formats the findings for a pipe: a line for each, with tabs.
    pub(super) fn lines(&self) -> String {
        let line = |it: &Finding| {
            format!("{}\t{}\t{}\t{}\n", it.state.as_str(), it.subject, it.text, it.advice)
        };
        ["state\tsubject\tfinding\tadvice\n".to_owned()]
            .into_iter()
            .chain(self.0.iter().map(line))
            .collect()
    }

    /// Formats the findings in columns, for a terminal, with the advice below the finding.
    pub(super) fn table(&self, colours: bool) -> String {
        const STATE: usize = 7;

        let subjects = self.0.iter().map(|it| it.subject.len()).max().unwrap_or(0);
        let indent = " ".repeat(STATE + subjects + 4);
        let line = |it: &Finding| {
            let (state, subject) = (it.state.as_str(), it.subject);
            let (on, off) = if colours { (it.state.colour(), "\u{1b}[0m") } else { ("", "") };
            let mut line = format!("{on}{state:STATE$}{off}  {subject:subjects$}  {}\n", it.text);
            if !it.advice.is_empty() {
                line.extend([indent.as_str(), &it.advice, "\n"]);
            }
            line
        };
        self.0.iter().map(line).collect()
    }

    pub(super) fn json(&self) -> String {
        let object = |it: &Finding| {
            json!({
                "state": it.state.as_str(),
                "subject": it.subject,
                "finding": it.text,
                "advice": Some(&it.advice).filter(|advice| !advice.is_empty()),
            })
        };
        format!("{:#}\n", Value::from(self.0.iter().map(object).collect::<Vec<_>>()))
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> &[Finding] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        let mut findings = Findings::default();
        findings.ok("database", "it answers");
        findings.fail("topic", "no\tbroker\nanswers", "start Kafka");
        findings
    }

    #[test]
    fn pipe_gets_a_line_for_each_finding() {
        assert_eq!(
            findings().lines(),
            "state\tsubject\tfinding\tadvice\n\
             ok\tdatabase\tit answers\t\n\
             failure\ttopic\tno broker answers\tstart Kafka\n"
        );
    }

    #[test]
    fn terminal_gets_the_advice_below_the_finding() {
        assert_eq!(
            findings().table(false),
            "ok       database  it answers\n\
             failure  topic     no broker answers\n                   start Kafka\n"
        );
        assert!(findings().table(true).starts_with("\u{1b}[32mok     \u{1b}[0m  database"));
    }

    #[test]
    fn json_has_null_for_no_advice() {
        let json: Value = serde_json::from_str(&findings().json()).unwrap();

        assert_eq!(json[0]["advice"], Value::Null);
        assert_eq!(json[1]["advice"], "start Kafka");
    }
}
