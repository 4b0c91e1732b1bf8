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
    /// Reads both. A `.env` that is not there is no error; a line of it that cannot be read is.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        // What is not Unicode is no setting of ours.
        let process = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let file = match fs::read_to_string(file) {
            Ok(text) => parse(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => return Err(format!(".env cannot be read: {error}")),
        };
        Ok(Self { process, file })
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.process.get(name).or_else(|| self.file.get(name)).cloned()
    }
}

pub(crate) fn parse(text: &str) -> Result<HashMap<String, String>, String> {
    let mut values = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        // The line itself is not shown: it may hold a password.
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| format!(".env, line {}: not NAME=value", number + 1))?;
        let value = unquote(value.trim())
            .ok_or_else(|| format!(".env, line {}: a quote is not closed", number + 1))?;
        values.insert(name.trim().to_owned(), value);
    }
    Ok(values)
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
        let values = parse(
            "# comment\nAPP_PORT=8080\n\nPROCESSOR_TOPIC=\"message\"\nexport DB='a # b'\n\
             PRODUCER_URL=a:9092 b:9092\nPOSTGRES_PASSWORD=pa$s=w #rd\nEMPTY=\r\n",
        )
        .unwrap();

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
    }

    #[test]
    fn names_the_line_that_it_cannot_read_and_not_its_content() {
        assert_eq!(parse("A=1\nsecret"), Err(".env, line 2: not NAME=value".to_owned()));
        assert_eq!(parse("A=\"secret"), Err(".env, line 1: a quote is not closed".to_owned()));
    }
}
