//! Gathers what is wrong with a file of gateways.

use std::fmt::Display;

use super::document::Table;

/// The findings in a file, each with its line.
#[derive(Debug, Default)]
pub(super) struct Report {
    file: String,
    problems: Vec<(usize, String)>,
    missing: Vec<(usize, String)>,
    remarks: Vec<(usize, String)>,
}

/// A line, and the table that it belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) line: usize,
    /// As it stands in the file, such as `[gateway.main]`.
    pub(super) table: &'a str,
}

impl Report {
    pub(super) fn of(file: &str) -> Self {
        Self { file: file.to_owned(), ..Self::default() }
    }

    /// Notes a problem, which keeps every process from starting. `words` continue the place.
    pub(super) fn problem(&mut self, place: Place<'_>, words: impl Display) {
        self.problems.push((place.line, self.line(place, words)));
    }

    /// Notes a secret that is not here, which keeps processes from starting that send.
    pub(super) fn missing(&mut self, place: Place<'_>, words: impl Display) {
        self.missing.push((place.line, self.line(place, words)));
    }

    /// Notes what is allowed and probably not meant.
    pub(super) fn remark(&mut self, place: Place<'_>, words: impl Display) {
        self.remarks.push((place.line, self.line(place, words)));
    }

    pub(super) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Notes each key that `table` must not have.
    pub(super) fn refuse_unknown(&mut self, place: Place<'_>, table: &Table, known: &[&str]) {
        for (key, node) in table.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
            let hint = hint(key, known);
            self.problem(Place { line: node.line, ..place }, format!("has no key {key:?}{hint}"));
        }
    }

    fn line(&self, Place { line, table }: Place<'_>, words: impl Display) -> String {
        let space = if table.is_empty() { "" } else { " " };
        format!("{}:{line}: {table}{space}{words}", self.file)
    }

    /// Returns the problems, the missing secrets and the remarks, each in the order of the lines.
    pub(super) fn into_lines(self) -> [Vec<String>; 3] {
        [self.problems, self.missing, self.remarks].map(|mut all| {
            all.sort_by_key(|(line, _)| *line);
            all.into_iter().map(|(_, words)| words).collect()
        })
    }
}

impl Place<'_> {
    /// The same table at the line of a key.
    pub(super) fn at(self, line: usize) -> Self {
        Self { line, ..self }
    }
}

/// Returns `: did you mean …?` if a known word is near, and the known words otherwise.
pub(super) fn hint(word: &str, known: &[&str]) -> String {
    let distance = |known: &&str| strsim::osa_distance(&word.to_ascii_lowercase(), known);
    let nearest = known.iter().map(|it| (distance(it), it)).min_by_key(|it| it.0);
    match nearest {
        Some((distance, nearest)) if 3 * distance <= word.len().max(3) => {
            format!(": did you mean {nearest}?")
        }
        _ => format!("; allowed are {}", known.join(", ")),
    }
}
