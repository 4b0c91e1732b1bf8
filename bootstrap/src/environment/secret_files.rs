//! Secrets in files: `<NAME>_FILE` is the path of the file that holds the value of `<NAME>`, as Docker
//! and Kubernetes hand secrets over.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// The secrets that were read from files.
#[derive(Debug, Default)]
pub(super) struct SecretFiles {
    /// By the name of the setting.
    pub(super) values: HashMap<String, String>,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// The permission of users that neither own the file nor are in its group.
const READABLE_BY_OTHERS: u32 = 0o004;

/// The folder of a container in which Docker mounts its secrets, readable for every user.
const OF_DOCKER: &str = "/run/secrets";

/// Returns the name of the setting for the path.
pub(super) fn path_name(secret: &str) -> String {
    format!("{secret}_FILE")
}

/// Returns whether every user of this machine may read a file. `false` if there is none.
pub(crate) fn is_readable_by_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| is_open(path, file.mode()))
}

/// A secret of Docker is not open: its container has no other users.
fn is_open(path: &Path, mode: u32) -> bool {
    mode & READABLE_BY_OTHERS != 0 && !path.starts_with(OF_DOCKER)
}

impl SecretFiles {
    /// Reads the file of each secret that has one. `get` returns the value that is set for a name.
    pub(super) fn read<'a>(
        secrets: &BTreeSet<String>,
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> Self {
        let mut files = Self::default();
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        for secret in secrets {
            let Some(path) = get(&path_name(secret)) else { continue };
            if get(secret).is_some() {
                let name = path_name(secret);
                files
                    .problems
                    .push(format!("{secret} and {name} are both set: remove one of them"));
                continue;
            }
            files.add(secret, Path::new(path.trim()));
        }
        files
    }

    fn add(&mut self, secret: &str, path: &Path) {
        let name = path_name(secret);
        match read(path) {
            Ok((value, _)) if value.trim().is_empty() => {
                self.problems.push(format!("{name} names {}, which is empty", path.display()));
            }
            Ok((value, mode)) => {
                if is_open(path, mode) {
                    self.warnings.push(format!(
                        "{name} names {}, which every user of this machine can read: take that right \
                         away, such as with chmod o-r",
                        path.display()
                    ));
                }
                // An editor or `echo` adds a line break.
                self.values
                    .insert(secret.to_owned(), value.trim_end_matches(['\r', '\n']).to_owned());
            }
            Err(error) => {
                let path = path.display();
                self.problems.push(format!("{name} names {path}, which cannot be read: {error}"));
            }
        }
    }
}

/// Returns the text of a file and its permissions.
fn read(path: &Path) -> io::Result<(String, u32)> {
    let mode = fs::metadata(path)?.mode();
    Ok((fs::read_to_string(path)?, mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A file that is removed at the end of the test.
    struct Secret(std::path::PathBuf);

    impl Secret {
        fn new(name: &str, content: impl AsRef<[u8]>, mode: u32) -> Self {
            let name = format!("secret-file-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Self(path)
        }

        fn path(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for Secret {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn read(set: &[(&str, &str)]) -> SecretFiles {
        let secrets = ["PASSWORD", "KEY"].map(str::to_owned).into();
        SecretFiles::read(&secrets, |name| set.iter().find(|it| it.0 == name).map(|it| it.1))
    }

    #[test]
    fn secret_is_the_text_of_its_file_without_line_breaks_at_the_end() {
        let file = Secret::new("text", " a b\n\r\n", 0o600);

        let files = read(&[("PASSWORD_FILE", file.path()), ("KEY_FILE", " ")]);

        assert_eq!(files.values, [("PASSWORD".to_owned(), " a b".to_owned())].into());
        assert_eq!((files.problems, files.warnings), (vec![], vec![]));
    }

    #[test]
    fn file_that_everyone_can_read_is_reported() {
        let file = Secret::new("open", "a", 0o644);

        let files = read(&[("KEY_FILE", file.path())]);

        assert_eq!(files.values["KEY"], "a");
        assert!(files.warnings[0].starts_with("KEY_FILE names "), "{:?}", files.warnings);
    }

    #[test]
    fn secret_of_docker_is_not_open() {
        assert!(is_open(Path::new("/run/secret"), 0o100_444));
        assert!(!is_open(Path::new("/run/secrets/key"), 0o100_444));
    }

    #[test]
    fn file_that_cannot_be_used_is_a_problem_that_does_not_show_it() {
        let empty = Secret::new("empty", "\n", 0o600);
        let bytes = Secret::new("bytes", b"hush\xff", 0o600);
        let good = Secret::new("good", "hush", 0o600);
        for (set, expected) in [
            (vec![("KEY_FILE", empty.path())], "which is empty"),
            (
                vec![("KEY_FILE", bytes.path())],
                "which cannot be read: stream did not contain valid",
            ),
            (
                vec![("KEY_FILE", "/nowhere/key")],
                "names /nowhere/key, which cannot be read: No such",
            ),
            (vec![("KEY_FILE", good.path()), ("KEY", "x")], "KEY and KEY_FILE are both set"),
        ] {
            let files = read(&set);
            assert!(files.values.is_empty());
            assert_eq!(files.problems.len(), 1);
            assert!(files.problems[0].contains(expected), "{:?}", files.problems);
            assert!(!files.problems[0].contains("hush"), "{:?}", files.problems);
        }
    }
}
