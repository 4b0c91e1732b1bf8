//! The findings, and their forms.

use serde_json::Value;

use super::super::table::{Colour, Form, Table};

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

    const fn colour(self) -> Colour {
        match self {
            Self::Ok => Colour::Green,
            Self::Warning => Colour::Yellow,
            Self::Failure => Colour::Red,
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

    /// On a terminal, the advice is below its finding.
    pub(super) fn text(&self, form: Form) -> String {
        match form {
            Form::Columns { .. } => self.columns(form),
            form => self.table(form).text(form),
        }
    }

    fn table(&self, form: Form) -> Table<4> {
        let mut table = Table::new(["state", "subject", "finding", "advice"]);
        for Finding { state, subject, text, advice } in &self.0 {
            let has_none = advice.is_empty() && form == Form::Json;
            let advice = if has_none { Value::Null } else { advice.as_str().into() };
            table.row([state.as_str().into(), (*subject).into(), text.as_str().into(), advice]);
        }
        table
    }

    fn columns(&self, form: Form) -> String {
        const STATE: usize = 7;

        let subjects = self.0.iter().map(|it| it.subject.len()).max().unwrap_or(0);
        let indent = " ".repeat(STATE + subjects + 4);
        let line = |it: &Finding| {
            let subject = it.subject;
            let state = it.state.colour().paint(&format!("{:STATE$}", it.state.as_str()), form);
            let mut line = format!("{state}  {subject:subjects$}  {}\n", it.text);
            if !it.advice.is_empty() {
                line.extend([indent.as_str(), &it.advice, "\n"]);
            }
            line
        };
        self.0.iter().map(line).collect()
    }

    #[cfg(test)]
    pub(super) fn lines(&self) -> String {
        self.text(Form::Tabs)
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
            findings().text(Form::Tabs),
            "state\tsubject\tfinding\tadvice\n\
             ok\tdatabase\tit answers\t\n\
             failure\ttopic\tno broker answers\tstart Kafka\n"
        );
    }

    #[test]
    fn terminal_gets_the_advice_below_the_finding() {
        assert_eq!(
            findings().text(Form::Columns { colours: false }),
            "ok       database  it answers\n\
             failure  topic     no broker answers\n                   start Kafka\n"
        );
        assert!(
            findings()
                .text(Form::Columns { colours: true })
                .starts_with("\u{1b}[32mok     \u{1b}[0m  database")
        );
    }

    #[test]
    fn json_has_null_for_no_advice() {
        let json: Value = serde_json::from_str(&findings().text(Form::Json)).unwrap();

        assert_eq!(json[0]["advice"], Value::Null);
        assert_eq!(json[1]["advice"], "start Kafka");
    }
}
