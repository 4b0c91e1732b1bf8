//! Searches logs for phones and codes.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use super::{
    history::History,
    invariants::{Invariant, Violation},
};
use crate::kit::phones::masked;

/// The phones and codes of a run.
#[derive(Debug)]
pub struct Secrets<'a> {
    phones: HashSet<&'a str>,
    /// By message. Six digits alone appear in many places by chance.
    codes: HashMap<&'a str, &'a str>,
}

const PHONE_DIGITS: std::ops::RangeInclusive<usize> = 11..=15;
const ID_LENGTH: usize = 36;

impl<'a> Secrets<'a> {
    pub fn of(history: &'a History) -> Self {
        Self {
            phones: history.requests.iter().map(|request| &*request.phone).collect(),
            codes: history.calls.iter().map(|call| (&*call.id, &*call.code)).collect(),
        }
    }

    /// Searches the log of a process.
    pub fn search(&self, process: &str, log: &Path) -> std::io::Result<Vec<Violation>> {
        let mut found = Vec::new();
        let mut log = BufReader::new(File::open(log)?);
        let mut line = Vec::new();
        while log.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            if let Some(what) = self.revealed(&text) {
                found.push(Violation {
                    invariant: Invariant::Log,
                    subject: process.to_owned(),
                    detail: what,
                });
            }
            line.clear();
        }
        Ok(found)
    }

    /// Returns what a line reveals: a whole number, or the code of the message that it is about.
    fn revealed(&self, line: &str) -> Option<String> {
        let is_phone =
            |digits: &&str| PHONE_DIGITS.contains(&digits.len()) && self.phones.contains(digits);
        if let Some(phone) = line.split(|char: char| !char.is_ascii_digit()).find(is_phone) {
            return Some(format!("a whole number: {}", masked(phone)));
        }
        let words = || line.split(|char: char| !char.is_ascii_alphanumeric() && char != '-');
        let id = words().find(|word| word.len() == ID_LENGTH && self.codes.contains_key(word))?;
        words().any(|word| word == self.codes[id]).then(|| format!("the code of {id}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_and_codes_are_found() {
        const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
        let secrets = Secrets {
            phones: HashSet::from(["79991234567"]),
            codes: HashMap::from([(ID, "123456")]),
        };

        let reveals = |line: &str| secrets.revealed(line).is_some();

        assert!(reveals("{\"phone\":\"79991234567\"}"));
        assert!(reveals(&format!("{{\"message.id\":\"{ID}\",\"code\":\"123456\"}}")));
        assert!(!reveals("{\"phone\":\"…4567\"}"));
        assert!(!reveals("179991234567 7999123456"));
        assert!(!reveals(&format!("{{\"message.id\":\"{ID}\",\"took\":1234567}}")));
        assert!(!reveals("123456"));
    }
}
