use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use application::{
    BoxError,
    ports::{Secrets, StoreError},
};
use autometrics::autometrics;
use sea_orm::DbErr;
use tokio::task::spawn_blocking;

use crate::database::{Database, Sql, Told};

/// Drawn secrets in the database, where all processes find them.
#[derive(Debug, Clone)]
pub struct SqlSecrets {
    database: Database,
}

/// Drawn secrets in a file that its owner alone may read: beside an SQLite file, and not in it, so
/// that a copy of the database gives none of them away.
///
/// Lines of `NAME=value`. Whoever writes holds a lock on the file and puts a new one in its place,
/// so that a crash leaves the one or the other.
#[derive(Debug, Clone)]
pub struct FileSecrets {
    path: PathBuf,
}

impl SqlSecrets {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    async fn read(&self, name: &str) -> Result<Option<String>, DbErr> {
        let rows = self.database.rows(FIND, vec![name.into()]).await?;
        rows.first().map(|row| row.try_get("", "value")).transpose()
    }
}

impl Secrets for SqlSecrets {
    #[autometrics(struct_name = "SqlSecrets")]
    async fn keep(&self, name: &str, drawn: &str) -> Result<String, StoreError> {
        let values = vec![name.into(), drawn.into()];
        self.database.execute(KEEP, values).await.map_err(Told)?;
        let kept = self.read(name).await.map_err(Told)?;
        kept.ok_or_else(|| StoreError::Unavailable("somebody forgot it at once".into()))
    }

    #[autometrics(struct_name = "SqlSecrets")]
    async fn find(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.read(name).await.map_err(Told)?)
    }

    #[autometrics(struct_name = "SqlSecrets")]
    async fn forget(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.database.execute(FORGET, vec![name.into()]).await.map_err(Told)? > 0)
    }
}

const KEEP: Sql = Sql {
    postgres: "INSERT INTO secret (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    sqlite: "
INSERT INTO secret (name, value, created_at)
VALUES ($1, $2, CAST(round(unixepoch('subsec') * 1000) AS INTEGER))
ON CONFLICT DO NOTHING",
};

const FIND_SQL: &str = "SELECT value FROM secret WHERE name = $1";
const FIND: Sql = Sql { postgres: FIND_SQL, sqlite: FIND_SQL };

const FORGET_SQL: &str = "DELETE FROM secret WHERE name = $1";
const FORGET: Sql = Sql { postgres: FORGET_SQL, sqlite: FORGET_SQL };

impl FileSecrets {
    /// In the file with the name of the database's and `.secrets` behind it.
    pub fn beside(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push(".secrets");
        Self { path: path.into() }
    }

    /// Where they stand.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does one step on the file, where waiting for its lock holds up nobody else.
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let path = self.path.clone();
        let result = spawn_blocking(move || step(&path)).await.map_err(unavailable)?;
        result.map_err(unavailable)
    }
}

impl Secrets for FileSecrets {
    #[autometrics(struct_name = "FileSecrets")]
    async fn keep(&self, name: &str, drawn: &str) -> Result<String, StoreError> {
        let (name, drawn) = (name.to_owned(), drawn.to_owned());
        self.step(move |path| {
            let mut held = Held::lock(path)?;
            if let Some(known) = held.find(&name) {
                return Ok(known.to_owned());
            }
            held.lines.push((name, drawn.clone()));
            held.replace(path)?;
            Ok(drawn)
        })
        .await
    }

    #[autometrics(struct_name = "FileSecrets")]
    async fn find(&self, name: &str) -> Result<Option<String>, StoreError> {
        let name = name.to_owned();
        self.step(move |path| {
            let mut text = String::new();
            match File::open(path) {
                Ok(mut file) => {
                    refuse_if_others_read(&file)?;
                    file.read_to_string(&mut text)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let found = lines(&text)?.into_iter().find(|(known, _)| *known == name);
            Ok(found.map(|(_, value)| value))
        })
        .await
    }

    #[autometrics(struct_name = "FileSecrets")]
    async fn forget(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.step(move |path| {
            if !fs::exists(path)? {
                return Ok(false);
            }
            let mut held = Held::lock(path)?;
            let was_there = held.find(&name).is_some();
            if was_there {
                held.lines.retain(|(known, _)| *known != name);
                held.replace(path)?;
            }
            Ok(was_there)
        })
        .await
    }
}

/// The file, while nobody else may write it.
struct Held {
    lines: Vec<(String, String)>,
    /// Its lock ends with it.
    _file: File,
}

impl Held {
    /// Makes the file if it is not there.
    fn lock(path: &Path) -> io::Result<Self> {
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(OWNER_ONLY)
                .open(path)?;
            file.lock()?;
            refuse_if_others_read(&file)?;
            // Somebody may have put another one in its place while we waited.
            let is_in_place = match fs::metadata(path) {
                Ok(there) => (there.dev(), there.ino()) == file_id(&file)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if is_in_place {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                return Ok(Self { lines: lines(&text)?, _file: file });
            }
        }
    }

    fn find(&self, name: &str) -> Option<&str> {
        self.lines.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let mut next = path.as_os_str().to_owned();
        next.push(".new");
        let next = PathBuf::from(next);
        // Left by a crash, perhaps, and we hold the lock.
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(&next)?;
        for (name, value) in &self.lines {
            writeln!(file, "{name}={value}")?;
        }
        file.sync_all()?;
        fs::rename(&next, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

const OWNER_ONLY: u32 = 0o600;

/// A line that says nothing may have been a key: what is drawn in its place would fit no code.
fn lines(text: &str) -> io::Result<Vec<(String, String)>> {
    let pairs = text.lines().enumerate().map(|(number, line)| {
        let (name, value) = line.split_once('=').ok_or_else(|| {
            let problem = format!("line {} of the file of secrets is not NAME=value", number + 1);
            io::Error::new(io::ErrorKind::InvalidData, problem)
        })?;
        Ok((name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

fn file_id(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|it| (it.dev(), it.ino()))
}

fn refuse_if_others_read(file: &File) -> io::Result<()> {
    const OTHERS: u32 = 0o077;
    if file.metadata()?.mode() & OTHERS == 0 {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "others than its owner may read the file of secrets",
        ))
    }
}

fn unavailable(error: impl Into<BoxError>) -> StoreError {
    StoreError::Unavailable(error.into())
}
