use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::Path,
    process::Command,
};

use super::Folder;

/// A small file system. It is unmounted when this value is dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk(Folder);

impl SmallDisk {
    /// Returns `None` on a machine that lets this user mount nothing, as containers often do. The
    /// test is then skipped, unless `REQUIRE_SERVICES` says that it must not be.
    #[expect(clippy::disallowed_methods, reason = "tests are told what may be skipped this way")]
    pub(crate) fn new(megabytes: u32) -> Option<Self> {
        let folder = Folder::new();
        let options = format!("size={megabytes}m,mode=0777");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder.path())
            .output()
            .unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr);
            assert!(std::env::var("REQUIRE_SERVICES").is_err(), "no small disk is mounted: {why}");
            eprintln!("skipped: {why}");
            return None;
        }
        Some(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills the file system.
    pub(crate) fn fill(&self) {
        let mut filler = File::create(self.path().join("filler")).unwrap();
        let page = [1; 4096];
        let error = loop {
            if let Err(error) = filler.write_all(&page) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    pub(crate) fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
