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
    /// Mounts a file system. If this user may not, fails if it is required, and uses a folder
    /// otherwise.
    pub(super) fn mount(path: PathBuf, is_required: bool) -> anyhow::Result<Self> {
        Self::mount_with(path, &format!("size={MEGABYTES}m"), is_required)
    }

    fn mount_with(path: PathBuf, options: &str, is_required: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&path)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path)
            .output()
            .context("mount")?;
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
            ensure!(
                !is_required,
                "cannot mount a disk for the faults disk-full and disk-read-only: {why}\n\
                Run it as root, or in `unshare --map-root-user --mount`, or leave these faults out \
                with --without-disk"
            );
            eprintln!("chaos: without the faults disk-full and disk-read-only: {why}");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_mount_a_required_disk_is_an_error() {
        let path = std::env::temp_dir().join(format!("disk-test-{}", std::process::id()));
        let mount = |is_required| Disk::mount_with(path.clone(), "no-such-option", is_required);

        let (required, optional) = (mount(true), mount(false));

        std::fs::remove_dir_all(&path).unwrap();
        assert!(required.unwrap_err().to_string().contains("--without-disk"));
        assert!(!optional.unwrap().is_mounted);
    }
}
