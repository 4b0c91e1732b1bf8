//! Broken variants of the service, each of which the checker must catch.
//!
//! A checker that finds nothing proves little until it has found known faults. A mutant is a patch
//! file. Its first lines say how to run it and which invariants it must violate.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use tokio::process::Command;

use super::invariants::Invariant;

/// A patch, with the run that must catch it.
#[derive(Debug)]
pub struct Mutant {
    pub name: String,
    /// The fault that the patch puts in.
    pub about: String,
    patch: PathBuf,
    /// The command of `chaos` under which the fault shows, with its arguments.
    args: Vec<String>,
    /// The names of invariants. The mutant must violate at least one of them.
    expected: BTreeSet<String>,
}

/// The outcome of a mutant's run.
#[derive(Debug)]
pub struct Verdict {
    /// How often it violated each invariant.
    pub violated: BTreeMap<String, usize>,
    pub is_caught: bool,
}

/// A copy of the source tree in which mutants are built. It is kept, so that cargo builds only what
/// a patch changes.
#[derive(Debug)]
pub struct Workshop {
    root: PathBuf,
    tree: PathBuf,
    target: PathBuf,
}

impl Mutant {
    /// Reads all patches of a folder, in the order of their names.
    pub fn all(folder: &Path) -> anyhow::Result<Vec<Self>> {
        let mut mutants = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new("patch")) {
                let mutant = Self::read(&path).with_context(|| path.display().to_string())?;
                mutants.push(mutant);
            }
        }
        mutants.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(mutants)
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)?;
        let (head, _) = text
            .split_once("diff --git")
            .context("it has no line that begins with \"diff --git\"")?;
        let field = |name: &str| {
            let value = head.lines().find_map(|line| line.strip_prefix(name));
            value.map(str::trim).with_context(|| format!("no line begins with {name:?}"))
        };
        let words = |value: &str| value.split_whitespace().map(str::to_owned).collect();
        let expected: Vec<String> = words(field("Caught by:")?);
        if let Some(unknown) = expected.iter().find(|name| Invariant::of_name(name).is_none()) {
            bail!("{unknown:?} is no invariant");
        }
        let args: Vec<String> = words(field("Run:")?);
        let is_known = args
            .first()
            .is_some_and(|command| ["run", "embedded", "gateways"].contains(&&**command));
        ensure!(is_known, "Run: does not begin with `run`, `embedded` or `gateways`");
        Ok(Self {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            about: field("About:")?.to_owned(),
            patch: path.canonicalize()?,
            args,
            expected: expected.into_iter().collect(),
        })
    }
}

impl Workshop {
    /// Uses the tree at `root`, and a folder below `target` for the copy.
    pub fn new(root: &Path, target: &Path) -> anyhow::Result<Self> {
        let folder = target.join("mutants");
        fs::create_dir_all(&folder)?;
        let folder = folder.canonicalize()?;
        Ok(Self {
            root: root.canonicalize()?,
            tree: folder.join("tree"),
            target: folder.join("target"),
        })
    }

    /// Returns an error with the reason if the patch does not apply to the tree.
    pub async fn check(&self, mutant: &Mutant) -> anyhow::Result<()> {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.root).args(["apply", "--check"]);
        apply(&mut git, mutant).await
    }

    /// Builds the mutant, runs it, and returns what the checker found. `chaos` is the harness.
    pub async fn judge(&self, mutant: &Mutant, chaos: &Path) -> anyhow::Result<Verdict> {
        self.copy().await?;
        let mut git = Command::new("git");
        git.args(["apply", "--whitespace=nowarn"])
            .current_dir(&self.tree)
            // Otherwise git finds the repository that the copy lies in, and applies nothing.
            .env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree));
        apply(&mut git, mutant).await?;
        run(Command::new("cargo")
            .args(["build", "--quiet", "--package", "bootstrap", "--bins"])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target))
        .await?;

        let report = self.target.join("report.json");
        let logs = self.target.with_file_name("logs");
        let _ = (fs::remove_file(&report), fs::remove_dir_all(&logs));
        fs::create_dir_all(&logs)?;
        let status = Command::new(chaos)
            .args(&mutant.args)
            .arg("--bins")
            .arg(self.target.join("debug"))
            .arg("--report")
            .arg(&report)
            // The logs of runs that are meant to fail stay out of the way.
            .env("TMPDIR", &logs)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .await
            .context("run the harness")?;
        let report = fs::read(&report).with_context(|| format!("no report; {status}"))?;
        let report: serde_json::Value = serde_json::from_slice(&report)?;
        let mut violated = BTreeMap::new();
        for violation in report["violations"].as_array().into_iter().flatten() {
            let name = violation["invariant"].as_str().unwrap_or_default().to_owned();
            *violated.entry(name).or_default() += 1;
        }
        let is_caught = mutant.expected.iter().any(|name| violated.contains_key(name));
        Ok(Verdict { violated, is_caught })
    }

    /// Makes the copy equal to the tracked files of the tree. Files that are equal are not written,
    /// because cargo goes by the times of files.
    async fn copy(&self) -> anyhow::Result<()> {
        let listed = Command::new("git")
            .arg("-C")
            .arg(&self.root)
            .args(["ls-files", "-z"])
            .output()
            .await
            .context("run git")?;
        ensure!(listed.status.success(), "git ls-files: {}", listed.status);
        let files: BTreeSet<PathBuf> = String::from_utf8(listed.stdout)?
            .split_terminator('\0')
            .map(PathBuf::from)
            // Files that are deleted, with the deletion not committed yet.
            .filter(|file| self.root.join(file).exists())
            .collect();
        for file in &files {
            let (from, to) = (self.root.join(file), self.tree.join(file));
            let wanted = fs::read(&from)?;
            if fs::read(&to).is_ok_and(|found| found == wanted) {
                continue;
            }
            fs::create_dir_all(to.parent().unwrap_or(&self.tree))?;
            fs::write(to, wanted)?;
        }
        remove_untracked(&self.tree, &self.tree, &files)
    }
}

/// Removes the files below `folder` that are not on the list.
fn remove_untracked(tree: &Path, folder: &Path, keep: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_untracked(tree, &path, keep)?;
        } else if !keep.contains(path.strip_prefix(tree)?) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Runs a `git apply` for a patch. If it fails, the error says what to do.
async fn apply(git: &mut Command, mutant: &Mutant) -> anyhow::Result<()> {
    let output = git.arg(&mutant.patch).stdin(Stdio::null()).output().await.context("run git")?;
    ensure!(
        output.status.success(),
        "the patch does not apply: the code under it has changed. Make the same change by hand, and \
        put the output of `git diff` below the header of lab/mutants/{}.patch\n{}",
        mutant.name,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

async fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).status().await?;
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_has_a_header() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants");

        let mutants = Mutant::all(&folder).unwrap();

        assert!(!mutants.is_empty());
        assert!(mutants.iter().all(|mutant| !mutant.expected.is_empty()));
    }

    #[tokio::test]
    async fn a_patch_that_does_not_apply_is_an_error_that_says_what_to_do() {
        let folder = std::env::temp_dir().join(format!("mutants-test-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let patch = folder.join("stale.patch");
        let diff = "diff --git a/Cargo.toml b/Cargo.toml\n--- a/Cargo.toml\n+++ b/Cargo.toml\n\
            @@ -1 +1 @@\n-this line is not there\n+nor this\n";
        let head = "About: nothing\nRun: run --minutes 1\nCaught by: lost\n\n";
        fs::write(&patch, [head, diff].concat()).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let workshop = Workshop::new(&root, &folder).unwrap();
        let mutant = Mutant::read(&patch).unwrap();

        let error = workshop.check(&mutant).await.unwrap_err().to_string();

        fs::remove_dir_all(&folder).unwrap();
        assert!(error.contains("lab/mutants/stale.patch") && error.contains("git diff"), "{error}");
    }
}
