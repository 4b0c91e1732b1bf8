use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

/// A small disk for the service's file.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) path: PathBuf,
    /// Whether it is a file system of its own, which can be full or read-only.
    pub(super) is_mounted: bool,
}

const MEGABYTES: u32 = 64;

impl Disk {
    /// Mounts a file system if this user may, else creates a folder.
    pub(super) fn mount(path: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&path)?;
        let options = format!("size={MEGABYTES}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .output()
            .context("mount")?;
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
            eprintln!("chaos: no full and no read-only disk here: {why}");
        }
        Ok(Self { path, is_mounted: mounted.status.success() })
    }

    /// Fills it up.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let mut filler = File::create(self.filler())?;
        let page = [1; 4096];
        loop {
            match filler.write_all(&page) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn free(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Fails if a file on it is open for writing.
    pub(super) fn make_read_only(&self) -> anyhow::Result<()> {
        self.remount("remount,ro")
    }

    pub(super) fn make_writable(&self) -> anyhow::Result<()> {
        self.remount("remount,rw")
    }

    fn remount(&self, options: &str) -> anyhow::Result<()> {
        let done = Command::new("mount").args(["-o", options]).arg(&self.path).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        Path::new(&self.path).join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
        }
    }
}
