use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::Folder;

/// A file system of its own with little room. Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    folder: Folder,
    path: PathBuf,
    /// A process in whose namespace it is mounted.
    holder: Option<Child>,
}

impl SmallDisk {
    /// None on a machine that lets this user mount nothing, not even in a namespace of its own; the
    /// test is skipped, unless `REQUIRE_SERVICES` says that it must not be.
    #[expect(clippy::disallowed_methods, reason = "tests are told what may be skipped this way")]
    pub(crate) fn new(megabytes: u32) -> Option<Self> {
        let options = format!("size={megabytes}m,mode=0777");
        let disk = mount(&options).or_else(|| mount_in_namespace(&options));
        assert!(
            disk.is_some() || std::env::var("REQUIRE_SERVICES").is_err(),
            "no small disk can be mounted"
        );
        disk
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves no room.
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
        match &mut self.holder {
            Some(holder) => {
                let _ = holder.kill();
                let _ = holder.wait();
            }
            None => {
                let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
            }
        }
    }
}

/// As root.
fn mount(options: &str) -> Option<SmallDisk> {
    let folder = Folder::new();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(folder.path())
        .output()
        .unwrap();
    if !mounted.status.success() {
        eprintln!("not mounted: {}", String::from_utf8_lossy(&mounted.stderr));
        return None;
    }
    let path = folder.path().to_owned();
    Some(SmallDisk { folder, path, holder: None })
}

/// As any user: in a namespace, which other processes of the user reach through `/proc`.
fn mount_in_namespace(options: &str) -> Option<SmallDisk> {
    // `cat` ends with this process, if nothing ends it before.
    const HOLD: &str = r#"mount -t tmpfs -o "$0" tmpfs "$1" && echo mounted && exec cat"#;
    let folder = Folder::new();
    let mut holder = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", HOLD, options])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut said = String::new();
    BufReader::new(holder.stdout.take()?).read_line(&mut said).unwrap();
    let path = format!("/proc/{}/root{}", holder.id(), folder.path().display()).into();
    let disk = SmallDisk { folder, path, holder: Some(holder) };
    (said == "mounted\n").then_some(disk)
}
