//! `messager settings`: the settings that a process started here would run with.

use std::{
    io::{self, IsTerminal, Write, stdout},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::Output;
use crate::config::{Effective, Shown, example, markdown};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Print the settings as JSON.
    #[arg(long)]
    json: bool,
    /// Print the tables of docs/settings.md.
    #[arg(long, hide = true, conflicts_with = "json")]
    markdown: bool,
    /// Print the file .env.example.
    #[arg(long, hide = true, conflicts_with_all = ["json", "markdown"])]
    example: bool,
}

/// Prints every setting, and on standard error what is wrong or probably not meant.
///
/// Exits with 2 if a process would not start with them.
pub fn execute(args: Args) -> ExitCode {
    if args.markdown || args.example {
        let text = if args.markdown { markdown() } else { example() };
        return write!(Output, "{text}").map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let Effective { settings, config, remarks } = Effective::read();
    let text = if args.json {
        json_of(&settings)
    } else if stdout().is_terminal() {
        table(&settings)
    } else {
        lines(&settings)
    };
    if write!(Output, "{text}").is_err() {
        return ExitCode::FAILURE;
    }
    for remark in remarks {
        let _ = writeln!(io::stderr(), "warning: {remark}");
    }
    match config {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(2)
        }
    }
}

fn rows(settings: &[Shown]) -> impl Iterator<Item = [String; 3]> {
    let head = ["name", "value", "source"].map(str::to_owned);
    let row = |setting: &Shown| {
        [setting.name.clone(), on_one_line(&setting.value), setting.source.to_string()]
    };
    [head].into_iter().chain(settings.iter().map(row))
}

fn lines(settings: &[Shown]) -> String {
    rows(settings).map(|row| row.join("\t") + "\n").collect()
}

/// Formats the settings in columns, for a terminal.
fn table(settings: &[Shown]) -> String {
    /// A longer value moves only its own source to the right.
    const WIDEST: usize = 48;

    let width = |column: usize| rows(settings).map(|row| row[column].chars().count()).max();
    let names = width(0).unwrap_or_default();
    let values = width(1).unwrap_or_default().min(WIDEST);
    let row =
        |[name, value, source]: [String; 3]| format!("{name:names$}  {value:values$}  {source}");
    rows(settings).map(row).collect::<Vec<_>>().join("\n") + "\n"
}

fn json_of(settings: &[Shown]) -> String {
    let object = |setting: &Shown| {
        let Shown { name, value, source } = setting;
        json!({ "name": name, "value": value, "source": source.to_string() })
    };
    let all: Vec<Value> = settings.iter().map(object).collect();
    format!("{:#}\n", Value::from(all))
}

/// Writes line breaks and other control characters as escapes.
fn on_one_line(value: &str) -> String {
    let mut line = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Source;

    fn settings() -> Vec<Shown> {
        let setting = |name: &str, value: &str, source| Shown {
            name: name.to_owned(),
            value: value.to_owned(),
            source,
        };
        vec![
            setting("APP_PORT", "8080", Source::Default),
            setting("SMS_TEMPLATE", "Shop\nCode:\t{code}", Source::Line(3)),
            setting("LOG", "", Source::Environment),
        ]
    }

    #[test]
    fn each_setting_is_one_line() {
        assert_eq!(
            lines(&settings()),
            "name\tvalue\tsource\nAPP_PORT\t8080\tdefault\n\
             SMS_TEMPLATE\tShop\\nCode:\\t{code}\t.env line 3\nLOG\t\tenvironment\n"
        );
    }

    #[test]
    fn columns_are_aligned() {
        let table = table(&settings());

        let at: Vec<_> = table.lines().map(|line| line.rfind("  ").unwrap()).collect();
        assert!(at.iter().all(|it| *it == at[0]), "{table}");
        assert!(table.contains("APP_PORT      8080"), "{table}");
    }

    #[test]
    fn json_has_the_unescaped_value() {
        let all: Vec<Value> = serde_json::from_str(&json_of(&settings())).unwrap();

        let template = json!({
            "name": "SMS_TEMPLATE", "value": "Shop\nCode:\t{code}", "source": ".env line 3",
        });
        assert_eq!((all.len(), &all[1]), (3, &template));
    }
}
