//! The file `.env`, in the dialect of godotenv 1.5.1, with which the Go service reads it.
//!
//! A file that is accepted has the same meaning for both, except that nothing is substituted: a `$`
//! is a `$`. A file that godotenv refuses, or misreads without an error, is refused. `cases.json`
//! lists how both read some files.

/// The content of a file.
#[derive(Debug, Default)]
pub(crate) struct DotEnv {
    /// In the order of the file.
    pub(crate) entries: Vec<Entry>,
    /// What is wrong with the lines that have no entry.
    pub(crate) problems: Vec<String>,
    /// What is allowed and probably not meant.
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) line: usize,
    /// Names inside a value of several lines that look as if they were set there.
    pub(crate) swallowed: Vec<String>,
}

const NOT_A_PAIR: &str = "must be NAME=value";
const BAD_NAME: &str = "a name has only A-Z, a-z, 0-9, _ and .";
const NOT_UTF8: &str = "is not UTF-8";
const LONE_RETURN: &str = "has a carriage return without a line feed";
const UNCLOSED: &str = "a quote is not closed";
const HASH: &str = "a value that begins with # behind a space must be in quotes";
const BEHIND: &str = "only a comment may follow the closing quote";
const LOST_QUOTE: &str = "an escaped quote must not stand at the end of a quoted value: use the \
    other kind of quotes";
const LOST_BACKSLASH: &str = "a backslash must not stand at the end of a quoted value or before a \
    $: use single quotes, or none";

impl DotEnv {
    /// Reads a file. A line that cannot be read is reported by its number and not shown: it may hold a
    /// secret.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            let problem = ".env is UTF-16, and must be UTF-8".to_owned();
            return Self { problems: vec![problem], ..Self::default() };
        }
        let text = String::from_utf8_lossy(bytes);
        // A comment may be in any encoding.
        let is_damaged = matches!(text, std::borrow::Cow::Owned(_));
        let text = text.replace("\r\n", "\n");
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let mut file = Self::default();
        let mut cursor = Cursor { rest: text, line: 1 };
        while let Some(line) = cursor.skip_to_statement() {
            let problem = match cursor.statement() {
                Ok(Some((_, value)))
                    if is_damaged && value.text.contains(char::REPLACEMENT_CHARACTER) =>
                {
                    NOT_UTF8.to_owned()
                }
                Ok(Some((name, value))) => {
                    file.add(name, value, line);
                    continue;
                }
                Ok(None) => continue,
                Err(problem) => problem,
            };
            file.problems.push(format!(".env, line {line}: {problem}"));
            cursor.skip_line();
        }
        file
    }

    fn add(&mut self, name: &str, Value { text: value, source }: Value<'_>, line: usize) {
        if let Some(before) = self.entries.iter().rfind(|entry| entry.name == name) {
            let before = before.line;
            self.warnings.push(format!(
                ".env, line {line}: {name} is set again, and line {before} does not count"
            ));
        }
        let is_set = |name: &&str| self.entries.iter().any(|entry| entry.name == *name);
        if let Some(named) = substituted(source).find(is_set) {
            self.warnings.push(format!(
                ".env, line {line}: ${named} in the value of {name} is not replaced"
            ));
        }
        let swallowed = value.lines().skip(1).filter_map(begins_with_name).map(str::to_owned);
        let swallowed = swallowed.collect();
        // The last value of a name counts.
        self.entries.retain(|entry| entry.name != name);
        self.entries.push(Entry { name: name.to_owned(), value, line, swallowed });
    }
}

/// Returns the names that godotenv would replace by values.
fn substituted(raw: &str) -> impl Iterator<Item = &str> {
    raw.match_indices('$').filter(|(at, _)| !raw[..*at].ends_with('\\')).map(|(at, _)| {
        let behind = &raw[at + 1..];
        let behind = behind.strip_prefix('(').unwrap_or(behind);
        let behind = behind.strip_prefix('{').unwrap_or(behind);
        let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        &behind[..behind.find(|c| !is_part(c)).unwrap_or(behind.len())]
    })
}

/// Returns the name that a line would set if it were a statement.
fn begins_with_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").unwrap_or(line);
    line.split_once(['=', ':']).map(|(name, _)| name.trim()).filter(|name| is_name(name))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

/// Returns whether godotenv takes a character for a space within a line.
fn is_space(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

struct Cursor<'a> {
    rest: &'a str,
    line: usize,
}

struct Value<'a> {
    text: String,
    /// The text in which godotenv would look for variables.
    source: &'a str,
}

impl<'a> Cursor<'a> {
    /// Returns the line of the next statement, if there is one.
    fn skip_to_statement(&mut self) -> Option<usize> {
        let space = self.rest.len() - self.rest.trim_start().len();
        self.take(space);
        (!self.rest.is_empty()).then_some(self.line)
    }

    /// Reads a pair, or skips a comment.
    fn statement(&mut self) -> Result<Option<(&'a str, Value<'a>)>, String> {
        if self.rest.starts_with('#') {
            let comment = self.take_until(&['\n']);
            // godotenv would read everything that follows as part of the comment.
            let is_plain = !comment.trim_end().contains('\r');
            return if is_plain { Ok(None) } else { Err(LONE_RETURN.to_owned()) };
        }
        let name = self.name()?;
        let spaces = self.rest.len() - self.rest.trim_start_matches(is_space).len();
        if self.rest[..spaces].contains('\r') {
            return Err(LONE_RETURN.to_owned());
        }
        self.take(spaces);
        let value = match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote)?,
            Some('#') if spaces > 0 => return Err(HASH.to_owned()),
            _ => self.bare(),
        };
        if value.text.contains('\0') {
            return Err("has a NUL".to_owned());
        }
        Ok(Some((name, value)))
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let line = &self.rest[..self.rest.find(['\n', '\r']).unwrap_or(self.rest.len())];
        let end = line.find(['=', ':']).ok_or(NOT_A_PAIR)?;
        let name = line[..end].trim();
        let name = match name.strip_prefix("export") {
            Some(exported) if exported.starts_with(is_space) => exported.trim_start(),
            _ => name,
        };
        if !is_name(name) {
            // It may be invisible, or look like another character.
            let odd = name.chars().find(|c| !c.is_ascii() && *c != char::REPLACEMENT_CHARACTER);
            return Err(match odd {
                Some(odd) => format!("{BAD_NAME}, and not U+{:04X}", u32::from(odd)),
                None if name.is_empty() => NOT_A_PAIR.to_owned(),
                None => BAD_NAME.to_owned(),
            });
        }
        self.take(end + 1);
        Ok(name)
    }

    /// Reads up to the end of the line, or to the last `#` with a space before it.
    fn bare(&mut self) -> Value<'a> {
        let line = self.take_until(&['\n', '\r']);
        let comment = line
            .match_indices('#')
            .map(|(at, _)| at)
            .rfind(|at| line[..*at].chars().next_back().is_some_and(is_space));
        let source = line[..comment.unwrap_or(line.len())].trim_matches(is_space);
        Value { text: source.replace("\\$", "$"), source }
    }

    fn quoted(&mut self, quote: char) -> Result<Value<'a>, String> {
        let inner = &self.rest[1..];
        let mut quotes = inner.match_indices(quote).map(|(at, _)| at);
        let is_double = quote == '"';
        let end = loop {
            let at = quotes.next().ok_or(UNCLOSED)?;
            let before = &inner[..at];
            let backslashes = before.len() - before.trim_end_matches('\\').len();
            if backslashes == 0 {
                break at;
            }
            if is_double && backslashes.is_multiple_of(2) {
                // godotenv takes the quote for an escaped one.
                return Err(LOST_BACKSLASH.to_owned());
            }
        };
        let (inner, behind) = (&inner[..end], &inner[end + 1..]);
        let behind = behind[..behind.find(['\n', '\r']).unwrap_or(behind.len())].trim_start();
        if !behind.is_empty() && !behind.starts_with('#') {
            return Err(BEHIND.to_owned());
        }
        if inner.ends_with(quote) {
            return Err(LOST_QUOTE.to_owned());
        }
        let value = if is_double {
            Value { text: unescaped(inner)?, source: inner }
        } else {
            Value { text: inner.to_owned(), source: "" }
        };
        self.take(end + 2);
        Ok(value)
    }

    fn skip_line(&mut self) {
        self.take_until(&['\n', '\r']);
    }

    fn take_until(&mut self, ends: &[char]) -> &'a str {
        self.take(self.rest.find(ends).unwrap_or(self.rest.len()))
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        // A carriage return also ends a line. Those before a line feed were removed.
        self.line += taken.matches(['\n', '\r']).count();
        self.rest = rest;
        taken
    }
}

/// Resolves the escapes of a double-quoted value: `\n` and `\r` are line breaks, and any other
/// character after a backslash stands for itself.
fn unescaped(inner: &str) -> Result<String, String> {
    let mut value = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            value.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => value.push('\n'),
            Some('r') => value.push('\r'),
            Some('\\') if chars.as_str().starts_with('$') => return Err(LOST_BACKSLASH.to_owned()),
            Some(escaped) => value.push(escaped),
            None => value.push('\\'),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
