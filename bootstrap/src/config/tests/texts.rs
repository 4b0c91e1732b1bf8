use std::path::PathBuf;

use super::*;

/// A file that is deleted when this value is dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("messager-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn complaint(settings: &[(&str, &str)]) -> String {
    read(settings).unwrap_err().to_string()
}

#[test]
fn texts_are_read_by_purpose_and_locale() {
    let texts = r#"{"login":{"de-AT":"Einloggen mit {code}"},"default":{"de":"Ihr Code: {code}"}}"#;
    let file = File::new("texts", texts);

    let config = read(&[
        ("TEMPLATES_FILE", file.path()),
        ("SMS_WEBOTP_HOST", "example.com"),
        ("SMS_APP_HASH", "FA+9qCX9VSu"),
    ]);

    let templates = config.unwrap().texts;
    let code = "482915".parse().unwrap();
    let text =
        |purpose, locale| templates.render(templates.resolve(purpose, locale).as_ref(), &code);
    let lines = "\nFA+9qCX9VSu\n\n@example.com #482915";
    assert_eq!(text(Some("login"), Some("de-AT")), format!("Einloggen mit 482915{lines}"));
    assert_eq!(text(Some("login"), Some("de")), format!("Ihr Code: 482915{lines}"));
    assert_eq!(text(None, None), format!("Your code: 482915{lines}"));
}

#[test]
fn bad_templates_fail_the_start() {
    let texts = format!(
        r#"{{"login":{{"de":"kein Platz","ru":"{{code}} {}","EN":"{{code}}!","en":"{{code}}?"}},
            "log in":{{"de":"{{code}}!"}},"buy":{{"de":"{{code}}!"}},"buy":{{"de":"{{code}}?"}}}}"#,
        "ы".repeat(70)
    );
    let file = File::new("bad", &texts);

    let complaint = complaint(&[("TEMPLATES_FILE", file.path()), ("SMS_TEMPLATE", "{code}")]);

    for expected in [
        "TEMPLATES_FILE \"login/de\": an SMS template must contain {code} exactly once",
        "TEMPLATES_FILE \"log in/de\": the name of a text is purpose/locale",
        "TEMPLATES_FILE has two texts \"login/en\"",
        "TEMPLATES_FILE has two texts \"buy/de\"",
        "SMS text SMS_TEMPLATE: contains only the code",
        "SMS text login/ru: takes 2 SMS in UCS-2 because of 'ы', and 1 are allowed",
    ] {
        assert!(complaint.contains(expected), "{expected} is not in:\n{complaint}");
    }
    assert_eq!(complaint.lines().count(), 1 + 6, "{complaint}");
}

#[test]
fn longer_text_is_accepted_if_more_segments_are_allowed() {
    let long = format!("Code: {{code}}{}", "a".repeat(160));
    let settings = [("SMS_TEMPLATE", &*long), ("SMS_MAX_SEGMENTS", "2")];

    assert!(complaint(&settings[..1]).contains("takes 2 SMS in GSM-7, and 1 are allowed"));
    assert!(read(&settings).is_ok());
}

#[test]
fn file_that_is_not_a_list_of_texts_is_refused() {
    for (name, content) in [("json", "{"), ("list", "[]"), ("flat", r#"{"login":"{code}!"}"#)] {
        let file = File::new(name, content);
        let complaint = complaint(&[("TEMPLATES_FILE", file.path())]);
        assert!(complaint.contains("TEMPLATES_FILE must be JSON of purpose"), "{complaint}");
    }
    let complaint = complaint(&[("TEMPLATES_FILE", "/nowhere/texts.json")]);
    assert!(complaint.contains("\"/nowhere/texts.json\", which cannot be read"), "{complaint}");
}
