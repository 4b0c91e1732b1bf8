use std::{collections::HashMap, fs, io, path::Path};

/// The settings as text: the process's environment, and below it the file `.env`.
///
/// The file is read as the predecessor read it, so that its file can stay: `NAME=value`, bare or
/// in quotes, `export` and `# comments` allowed. A `$` is a `$`: nothing is substituted.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    process: HashMap<String, String>,
    file: HashMap<String, String>,
}

impl Environment {
    /// Reads both, and says what of `.env` cannot be read. That it is not there is no problem.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub(crate) fn read(file: &Path) -> (Self, Vec<String>) {
        // What is not Unicode is no setting of ours.
        let process = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let (file, problems) = match fs::read_to_string(file) {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(error) => (HashMap::new(), vec![format!(".env cannot be read: {error}")]),
        };
        (Self { process, file }, problems)
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.process.get(name).or_else(|| self.file.get(name)).cloned()
    }
}

/// The values, and what is wrong with the other lines.
pub(crate) fn parse(text: &str) -> (HashMap<String, String>, Vec<String>) {
    let mut values = HashMap::new();
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        // The line itself is not shown: it may hold a password.
        let mut refuse = |rule| problems.push(format!(".env, line {}: {rule}", number + 1));
        let pair = line.split_once('=').map(|(name, value)| (name.trim(), value));
        let Some((name, value)) = pair.filter(|(name, _)| is_name(name)) else {
            refuse("not NAME=value");
            continue;
        };
        match unquote(value.trim()) {
            Some(value) => {
                values.insert(name.to_owned(), value);
            }
            None => refuse("a quote is not closed"),
        }
    }
    (values, problems)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(char::is_whitespace)
}

/// The value without its quotes and without a comment behind it.
fn unquote(value: &str) -> Option<String> {
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let inner = &value[1..];
            inner.find(quote).map(|end| inner[..end].to_owned())
        }
        _ => Some(value.split(" #").next().unwrap_or_default().trim_end().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_file_as_the_predecessor_wrote_it() {
        let (values, problems) = parse(
            "# comment\nAPP_PORT=8080\n\nPROCESSOR_TOPIC=\"message\"\nexport DB='a # b'\n\
             PRODUCER_URL=a:9092 b:9092\nPOSTGRES_PASSWORD=pa$s=w #rd\nEMPTY=\r\n",
        );

        let expected = [
            ("APP_PORT", "8080"),
            ("PROCESSOR_TOPIC", "message"),
            ("DB", "a # b"),
            ("PRODUCER_URL", "a:9092 b:9092"),
            ("POSTGRES_PASSWORD", "pa$s=w"),
            ("EMPTY", ""),
        ];
        for (name, value) in expected {
            assert_eq!(values[name], value, "{name}");
        }
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn names_the_lines_that_it_cannot_read_and_not_their_content() {
        let (values, problems) = parse("A=1\nsecret\nB=\"secret\nC=3\nIN WORDS=secret\n=secret");

        assert_eq!((values.len(), &*values["A"], &*values["C"]), (2, "1", "3"));
        assert_eq!(
            problems,
            [
                ".env, line 2: not NAME=value",
                ".env, line 3: a quote is not closed",
                ".env, line 5: not NAME=value",
                ".env, line 6: not NAME=value",
            ]
        );
    }
}
