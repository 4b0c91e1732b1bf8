//! `messager settings`: the settings that a process started here would run with.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::{
    Output,
    table::{Form, Table, text},
};
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
    let text = table(&settings).text(Form::of(args.json));
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

fn table(settings: &[Shown]) -> Table<3> {
    let mut table = Table::new(["name", "value", "source"]);
    for Shown { name, value, source } in settings {
        table.row([name.as_str().into(), value.as_str().into(), text(source)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            table(&settings()).text(Form::Tabs),
            "name\tvalue\tsource\nAPP_PORT\t8080\tdefault\n\
             SMS_TEMPLATE\tShop\\nCode:\\t{code}\t.env line 3\nLOG\t\tenvironment\n"
        );
    }

    #[test]
    fn json_has_the_unescaped_value() {
        let all = table(&settings()).json();

        let template = json!({
            "name": "SMS_TEMPLATE", "value": "Shop\nCode:\t{code}", "source": ".env line 3",
        });
        assert_eq!(all[1], template);
    }
}
