//! `messager limits`: clears the counts of a phone.

use std::io::Write;

use adapters_http::recipient;
use adapters_persistence::{Cleared, Database, clear_limits};
use domain::{PhoneNumber, Recipient, Region};

use super::Output;

#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Clear the counted guesses at a phone and messages to it, so that neither `LIMIT_CHECK` nor
    /// `LIMIT_PHONE` blocks its owner. The attempts of its verifications stay counted.
    Clear {
        /// In international form, such as +79991234567, or without the + as /api received it.
        #[arg(long, value_parser = phone)]
        phone: Phone,
    },
}

/// A phone as the operator typed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phone {
    digits: PhoneNumber,
    /// A number with a `+` is always in international form.
    has_plus: bool,
}

impl Phone {
    fn recipient(&self, default_region: Option<Region>) -> Recipient {
        recipient(&self.digits, default_region.filter(|_| !self.has_plus))
    }
}

/// Runs `messager limits …`.
pub async fn execute(
    database: &Database,
    default_region: Option<Region>,
    command: Command,
) -> anyhow::Result<()> {
    let Command::Clear { phone } = command;
    let to = phone.recipient(default_region);
    let cleared = clear_limits(database, to.phone()).await?;
    Ok(report(to.phone(), cleared, &mut Output)?)
}

/// Writes the cleared counts with a masked number, because a terminal may keep its output.
fn report(phone: &PhoneNumber, cleared: Cleared, out: &mut impl Write) -> std::io::Result<()> {
    let Cleared { guesses, messages } = cleared;
    writeln!(out, "{}\tguesses: {guesses}\tmessages: {messages}", phone.masked())
}

fn phone(text: &str) -> Result<Phone, &'static str> {
    let (digits, has_plus) = text.strip_prefix('+').map_or((text, false), |rest| (rest, true));
    // The error does not show the text, which is personal.
    let digits = digits.parse().map_err(|_| "7 to 15 digits, with or without a leading +")?;
    Ok(Phone { digits, has_plus })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn a_phone_is_digits_with_or_without_a_plus() {
        let parse = |text| Line::try_parse_from(["limits", "clear", "--phone", text]);

        for text in ["+79991234567", "79991234567"] {
            let Command::Clear { phone } = parse(text).unwrap().command;
            assert_eq!(phone.digits.as_str(), "79991234567");
        }
        for bad in ["", "+7 999", "phone"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_phone_with_a_plus_is_not_read_as_dialled() {
        let cleared = |text: &str| {
            let to = phone(text).unwrap().recipient("RU".parse().ok());
            to.phone().as_str().to_owned()
        };

        // As dialled in Russia it is +7 999 123-45-67. No country has the code 89.
        assert_eq!(cleared("89991234567"), "79991234567");
        assert_eq!(cleared("+89991234567"), "89991234567");
        assert_eq!(cleared("+79991234567"), "79991234567");
    }

    #[test]
    fn report_of_cleared_limits_masks_the_phone() {
        let mut out = Vec::new();
        let phone = "79991234567".parse().unwrap();

        report(&phone, Cleared { guesses: 2, messages: 1 }, &mut out).unwrap();

        assert_eq!(out, b"+7999*****67\tguesses: 2\tmessages: 1\n");
    }
}
