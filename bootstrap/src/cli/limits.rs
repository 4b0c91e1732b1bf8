//! `messager limits`: clears the counts of a phone.

use std::io::Write;

use adapters_persistence::{Cleared, Database, clear_limits};
use domain::{PhoneNumber, Region};

use super::{
    Output,
    phone::{Phone, phone},
};

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

/// Runs `messager limits …`.
pub async fn execute(
    database: &Database,
    default_region: Option<Region>,
    command: Command,
) -> anyhow::Result<()> {
    let Command::Clear { phone } = command;
    let phone = phone.number(default_region);
    let cleared = clear_limits(database, &phone).await?;
    Ok(report(&phone, cleared, &mut Output)?)
}

/// Writes the cleared counts with a masked number, because a terminal may keep its output.
fn report(phone: &PhoneNumber, cleared: Cleared, out: &mut impl Write) -> std::io::Result<()> {
    let Cleared { guesses, messages } = cleared;
    writeln!(out, "{}\tguesses: {guesses}\tmessages: {messages}", phone.masked())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_of_cleared_limits_masks_the_phone() {
        let mut out = Vec::new();
        let phone = "79991234567".parse().unwrap();

        report(&phone, Cleared { guesses: 2, messages: 1 }, &mut out).unwrap();

        assert_eq!(out, b"+7999*****67\tguesses: 2\tmessages: 1\n");
    }
}
