//! Broken variants of the service, each of which the checker must catch.
//!
//! A checker that finds nothing proves little until it has found what is there. A mutant is a patch
//! file; its first lines say how it is run and by what it has to be caught.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use tokio::process::Command;

use crate::checker::Invariant;

/// A patch, and what goes with it.
#[derive(Debug)]
pub struct Mutant {
    pub name: String,
    /// What is broken.
    pub about: String,
    patch: PathBuf,
    /// Arguments of `chaos run` under which it shows.
    args: Vec<String>,
    /// The names of the invariants one of which it must violate.
    expected: BTreeSet<String>,
}

/// What became of a mutant.
#[derive(Debug)]
pub struct Verdict {
    /// How often it violated each invariant.
    pub violated: BTreeMap<String, usize>,
    pub is_caught: bool,
}

/// The mutants of a source tree, in their own copy of it, which is kept so that only what a patch
/// changes is built again.
#[derive(Debug)]
pub struct Workshop {
    root: PathBuf,
    tree: PathBuf,
    target: PathBuf,
}

impl Mutant {
    /// All patches of a folder, by their names.
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
        let (head, _) = text.split_once("diff --git").context("there is no diff in it")?;
        let field = |name: &str| {
            let value = head.lines().find_map(|line| line.strip_prefix(name));
            value.map(str::trim).with_context(|| format!("no line begins with {name:?}"))
        };
        let words = |value: &str| value.split_whitespace().map(str::to_owned).collect();
        let expected: Vec<String> = words(field("Caught by:")?);
        if let Some(unknown) = expected.iter().find(|name| Invariant::of_name(name).is_none()) {
            bail!("{unknown:?} is no invariant");
        }
        Ok(Self {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            about: field("About:")?.to_owned(),
            patch: path.canonicalize()?,
            args: words(field("Run:")?),
            expected: expected.into_iter().collect(),
        })
    }
}

impl Workshop {
    /// For the tree at `root`, below its own folder for what is built.
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

    /// Whether the patch still fits the tree.
    pub async fn fits(&self, mutant: &Mutant) -> anyhow::Result<bool> {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.root).args(["apply", "--check"]).arg(&mutant.patch);
        Ok(git.status().await.context("run git")?.success())
    }

    /// Builds the mutant, runs it, and says what the checker found. `chaos` is the harness.
    pub async fn judge(&self, mutant: &Mutant, chaos: &Path) -> anyhow::Result<Verdict> {
        self.copy().await?;
        run(Command::new("git")
            .args(["apply", "--whitespace=nowarn"])
            .arg(&mutant.patch)
            .current_dir(&self.tree)
            // Not the repository that the copy may lie in: there, git would apply nothing.
            .env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree)))
        .await?;
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
            .args(["run", "--fail-fast", "--bins"])
            .arg(self.target.join("debug"))
            .arg("--report")
            .arg(&report)
            .args(&mutant.args)
            // The logs of what is meant to fail stay out of the way.
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

    /// Brings the copy to what the tree's tracked files say. What is the same is not written: cargo
    /// goes by the times of files.
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
            // Deleted, and not committed yet.
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
        remove_others(&self.tree, &self.tree, &files)
    }
}

/// Removes the files below `folder` that are not on the list.
fn remove_others(tree: &Path, folder: &Path, keep: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(tree, &path, keep)?;
        } else if !keep.contains(path.strip_prefix(tree)?) {
            fs::remove_file(&path)?;
        }
    }
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
    fn every_patch_says_what_it_is() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants");

        let mutants = Mutant::all(&folder).unwrap();

        assert!(!mutants.is_empty());
        assert!(mutants.iter().all(|mutant| !mutant.expected.is_empty()));
    }
}
