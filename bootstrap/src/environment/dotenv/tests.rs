use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::*;

/// `scripts/godotenv` writes what godotenv makes of the files.
const CASES: &str = include_str!("../cases.json");

#[derive(Debug, Deserialize)]
struct Case {
    about: String,
    file: String,
    godotenv: Option<BTreeMap<String, String>>,
    messager: Option<BTreeMap<String, String>>,
    #[serde(default)]
    refused: bool,
}

fn values(read: &DotEnv) -> HashMap<&str, &str> {
    read.entries.iter().map(|entry| (&*entry.name, &*entry.value)).collect()
}

fn problems(file: &[u8]) -> Vec<String> {
    DotEnv::parse(file).problems
}

#[test]
fn a_file_means_what_it_means_to_godotenv_or_is_refused() {
    let cases: Vec<Case> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 60);
    for case in cases {
        let read = DotEnv::parse(case.file.as_bytes());
        let values: BTreeMap<String, String> =
            read.entries.into_iter().map(|entry| (entry.name, entry.value)).collect();
        let found = read.problems.is_empty().then_some(values);

        let expected = if case.refused { None } else { case.messager.or(case.godotenv) };
        assert_eq!(found, expected, "{}: {:?}", case.about, read.problems);
    }
}

#[test]
fn all_bad_lines_are_named_and_not_shown() {
    let file = "A=1\nsecret\nB=\"secret\nC=3\nIN WORDS=secret\n=secret\nD='x' secret\nE= # secret\n\
                F=\"secret\\\"\"\nG=\"secret\\\\\"\nH=\"secret\\\\$\"\n\u{feff}I=secret\nJ=se\0cret\n\
                K=2";

    let read = DotEnv::parse(file.as_bytes());

    assert_eq!(values(&read), HashMap::from([("A", "1"), ("C", "3"), ("K", "2")]));
    assert_eq!(
        read.problems,
        [
            format!(".env, line 2: {NOT_A_PAIR}"),
            // Its value would end at the next quote, on line 9.
            format!(".env, line 3: {BEHIND}"),
            format!(".env, line 5: {BAD_NAME}"),
            format!(".env, line 6: {NOT_A_PAIR}"),
            format!(".env, line 7: {BEHIND}"),
            format!(".env, line 8: {HASH}"),
            format!(".env, line 9: {LOST_QUOTE}"),
            format!(".env, line 10: {LOST_BACKSLASH}"),
            format!(".env, line 11: {LOST_BACKSLASH}"),
            format!(".env, line 12: {BAD_NAME}, and not U+FEFF"),
            ".env, line 13: has a NUL".to_owned(),
        ]
    );
}

#[test]
fn lines_are_counted_through_every_kind_of_line_break() {
    for (file, line) in [
        ("A=1\n\nB\n", 3),
        ("A=1\r\n\r\nB\r\n", 3),
        ("A=1\r\rB\r", 3),
        ("A=\"1\n2\n\"\n# c\n\nB\n", 6),
        ("\u{feff}# c\r\nA='1\r\n2'\r\nB\r\n", 4),
    ] {
        assert_eq!(problems(file.as_bytes()), [format!(".env, line {line}: {NOT_A_PAIR}")]);
    }
    let read = DotEnv::parse(b"\n# c\nA='1\n2'\nB=3");
    let lines: Vec<_> = read.entries.iter().map(|entry| (&*entry.name, entry.line)).collect();
    assert_eq!(lines, [("A", 3), ("B", 5)]);
}

#[test]
fn bytes_that_are_not_utf_8_are_allowed_in_comments_only() {
    let read = DotEnv::parse(b"# caf\xe9\nA=1 # caf\xe9\nB=caf\xe9\nC=2\n");

    assert_eq!(values(&read), HashMap::from([("A", "1"), ("C", "2")]));
    assert_eq!(read.problems, [".env, line 3: is not UTF-8"]);
    assert_eq!(problems("A=\u{fffd}".as_bytes()), [""; 0]);
    assert_eq!(problems(b"\xff\xfeA\0=\x001\0"), [".env is UTF-16, and must be UTF-8"]);
}

#[test]
fn probable_mistakes_are_warnings() {
    let read = DotEnv::parse(b"A=1\nB=2\nA=3\nC=\"x${B}\"\nD='$B'\nE=\\$B $X $b\nF=$B # '\n");

    assert_eq!(
        read.warnings,
        [
            ".env, line 3: A is set again, and line 1 does not count",
            ".env, line 4: $B in the value of C is not replaced",
            ".env, line 7: $B in the value of F is not replaced",
        ]
    );
}

#[test]
fn names_inside_a_value_of_several_lines_are_known() {
    let read = DotEnv::parse(b"A=\"x\nexport B=2\n C : 3\nno name\nD\n\"\nE='F=1'\n");

    assert_eq!(read.entries[0].swallowed, ["B", "C"]);
    assert_eq!(read.entries[1].swallowed, [""; 0]);
}
