//! Takes over changed gateways while the process runs.

use std::{future::ready, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Process,
    config::{GatewaysConfig, GatewaysFile, environment},
    periodic::every,
    watched_files::{LOOK, WatchedFiles},
};

/// Returns the gateways in force. They change when `GATEWAYS_FILE`, or a file with a secret that it
/// names, has changed and can be used.
///
/// A process that sends needs the secrets of all gateways; another one also takes a file whose
/// secrets are not here. Several parts of a process may ask; the files are watched once.
pub(crate) fn gateways(process: &mut Process) -> watch::Receiver<Arc<GatewaysConfig>> {
    if let Some(gateways) = &process.gateways {
        return gateways.clone();
    }
    let config = Arc::new(process.config.gateways.clone());
    let files = config.files.clone();
    let (sender, receiver) = watch::channel(config);
    process.gateways = Some(receiver.clone());
    let watcher =
        Watcher { sends: process.sends(), watched: WatchedFiles::new(files), gateways: sender };
    let stop = process.stop.clone();
    process.spawn(async move {
        if watcher.watched.paths().is_empty() {
            stop.cancelled().await;
        } else {
            watcher.run(stop).await;
        }
        Ok(())
    });
    receiver
}

#[derive(Debug)]
struct Watcher {
    gateways: watch::Sender<Arc<GatewaysConfig>>,
    /// Whether the process sends, and needs the secrets.
    sends: bool,
    /// The file of gateways, and then the files with secrets.
    watched: WatchedFiles,
}

/// The result of reading a changed file.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// It says what is in force.
    Same,
    Over {
        remarks: Vec<String>,
    },
    Refused {
        problems: Vec<String>,
    },
}

impl Watcher {
    async fn run(mut self, stop: CancellationToken) {
        every(LOOK, &stop, || {
            if self.watched.have_changed() {
                self.take_over();
            }
            ready(())
        })
        .await;
    }

    fn take_over(&mut self) {
        let Some(path) = self.watched.paths().first().cloned() else { return };
        let environment = environment();
        let lookup = |name: &str| environment.get(name).map(|(value, _)| value.to_owned());
        self.watched.judge(GatewaysFile::read(&path, &lookup).files);
        let file = path.display().to_string();
        match self.take(GatewaysFile::read(&path, &lookup)) {
            Taken::Same => {}
            Taken::Over { remarks } => {
                for remark in remarks {
                    tracing::warn!("{remark}");
                }
                let gateways = self.gateways.borrow();
                tracing::info!(
                    file,
                    gateways = gateways.gateways.len(),
                    routes = gateways.routes.len(),
                    "the changed gateways are in force"
                );
            }
            Taken::Refused { problems } => tracing::error!(
                file,
                problems = problems.join("; "),
                "the changed gateways cannot be used, and those from before stay in force: correct \
                 the file; `messager gateways check` lists every problem"
            ),
        }
    }

    fn take(&self, file: GatewaysFile) -> Taken {
        let GatewaysFile { gateways, mut problems, missing, remarks, .. } = file;
        if self.sends {
            problems.extend(missing);
        }
        let Some(gateways) = gateways.filter(|_| problems.is_empty()) else {
            return Taken::Refused { problems };
        };
        let before = self.gateways.borrow().clone();
        let gateways = GatewaysConfig { public_url: before.public_url.clone(), ..gateways };
        if *before == gateways {
            return Taken::Same;
        }
        self.gateways.send_replace(Arc::new(gateways));
        Taken::Over { remarks }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    const ONE: &str = "[gateway.main]\nprovider = \"console\"\n";
    const TWO: &str =
        "[gateway.main]\nprovider = \"console\"\n[gateway.b]\nprovider = \"console\"\n";

    struct Watched {
        folder: PathBuf,
        watcher: Watcher,
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    /// Watches a file with this text.
    fn watched(name: &str, text: &str, sends: bool) -> Watched {
        let folder = std::env::temp_dir().join(format!("gateways-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("gateways.toml");
        fs::write(&path, text).unwrap();
        let GatewaysFile { gateways, files, .. } = GatewaysFile::read(&path, &|_| None);
        let gateways = watch::channel(Arc::new(gateways.unwrap())).0;
        let watcher = Watcher { gateways, sends, watched: WatchedFiles::new(files) };
        Watched { folder, watcher }
    }

    impl Watched {
        fn write(&self, file: &str, text: &str) {
            fs::write(self.folder.join(file), text).unwrap();
        }

        /// Looks once, and returns whether the file was judged.
        fn look(&mut self) -> bool {
            let changed = self.watcher.watched.have_changed();
            if changed {
                self.watcher.take_over();
            }
            changed
        }

        fn names(&self) -> Vec<String> {
            let gateways = self.watcher.gateways.borrow();
            gateways.gateways.iter().map(|it| it.name.to_string()).collect()
        }
    }

    #[test]
    fn changed_file_is_in_force_once_it_was_the_same_twice() {
        let mut watched = watched("steady", ONE, true);
        assert_eq!([watched.look(), watched.look(), watched.look()], [false, true, false]);

        watched.write("gateways.toml", "[gateway.");
        assert!(!watched.look(), "half written");
        watched.write("gateways.toml", TWO);
        assert_eq!([watched.look(), watched.look(), watched.look()], [false, true, false]);

        assert_eq!(watched.names(), ["main", "b"]);
    }

    #[test]
    fn bad_file_changes_nothing_until_it_is_corrected() {
        let mut watched = watched("bad", TWO, true);
        for bad in ["", "[gateway.main]\nprovider = \"consle\"\n", "no TOML"] {
            watched.write("gateways.toml", bad);
            while !watched.look() {}
            assert_eq!(watched.names(), ["main", "b"], "{bad}");
        }
        fs::remove_file(watched.folder.join("gateways.toml")).unwrap();
        while !watched.look() {}
        assert_eq!(watched.names(), ["main", "b"]);

        watched.write("gateways.toml", ONE);
        while !watched.look() {}
        assert_eq!(watched.names(), ["main"]);
    }

    #[test]
    fn secret_files_are_watched_even_if_one_is_missing() {
        let with_secret =
            format!("{ONE}[gateway.b]\nprovider = \"webhook\"\nurl = {{ file = \"url\" }}\n");
        for (sends, taken) in [(true, ["main"].as_slice()), (false, &["main", "b"])] {
            let mut watched = watched(if sends { "secret" } else { "none" }, ONE, sends);
            watched.write("gateways.toml", &with_secret);
            while !watched.look() {}
            assert_eq!(watched.names(), taken);

            watched.write("url", "http://one.example/\n");
            while !watched.look() {}
            assert_eq!(watched.names(), ["main", "b"]);
            let before = watched.watcher.gateways.borrow().clone();

            watched.write("url", "http://other.example/\n");
            while !watched.look() {}
            assert_ne!(*before, **watched.watcher.gateways.borrow());
        }
    }
}
