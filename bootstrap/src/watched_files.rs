//! Files that may be replaced while the process runs.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    time::Duration,
};

/// How often files are compared with what they were. A change counts once the files were the same
/// twice: a file that is half written is not read.
pub(crate) const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct WatchedFiles {
    paths: Vec<PathBuf>,
    /// The contents at the last look.
    seen: Option<u64>,
    /// The contents that were taken over or refused.
    judged: Option<u64>,
}

impl WatchedFiles {
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, seen: None, judged: None }
    }

    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Returns whether the files have changed since they were judged, and not since the last look.
    ///
    /// The first time they count as changed, because they may have changed after the start.
    pub(crate) fn have_changed(&mut self) -> bool {
        let now = Some(fingerprint(&self.paths));
        let are_steady = std::mem::replace(&mut self.seen, now) == now;
        are_steady && self.judged != now
    }

    /// Notes that these files are judged now. Call it before they are read: if one changes in
    /// between, they are judged again.
    pub(crate) fn judge(&mut self, paths: Vec<PathBuf>) {
        self.paths = paths;
        self.judged = Some(fingerprint(&self.paths));
        self.seen = self.judged;
    }
}

/// Returns a number that changes with the contents of the files. A file that cannot be read counts
/// too.
fn fingerprint(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}
