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
use sea_orm::FromQueryResult;
use tokio::task::spawn_blocking;

use crate::database::{Database, DatabaseError, Sql};

/// Stores the secrets that the service drew in the database, which all processes share.
#[derive(Debug, Clone)]
pub struct SqlSecrets {
    database: Database,
}

/// Stores the secrets that the service drew in a file that only its owner may read. The file is
/// next to the SQLite file, so that a copy of the database contains no secret.
///
/// The file has lines of `NAME=value`. A writer locks it and replaces it with a new file, so that
/// after a crash either the old or the new file is complete.
#[derive(Debug, Clone)]
pub struct FileSecrets {
    path: PathBuf,
}

impl SqlSecrets {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    async fn read(&self, name: &str) -> Result<Option<String>, DatabaseError> {
        let parameters = self.database.parameters().with("name", name);
        let row: Option<Row> = self.database.row(&FIND, parameters).await?;
        Ok(row.map(|row| row.value))
    }
}

impl Secrets for SqlSecrets {
    #[autometrics(struct_name = "SqlSecrets")]
    async fn keep(&self, name: &str, drawn: &str) -> Result<String, StoreError> {
        let parameters = self.database.parameters().with("name", name).with("value", drawn);
        self.database.execute(&KEEP, parameters).await?;
        let kept = self.read(name).await?;
        kept.ok_or_else(|| StoreError::Unavailable("it was deleted at the same moment".into()))
    }

    #[autometrics(struct_name = "SqlSecrets")]
    async fn find(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.read(name).await?)
    }

    #[autometrics(struct_name = "SqlSecrets")]
    async fn forget(&self, name: &str) -> Result<bool, StoreError> {
        let parameters = self.database.parameters().with("name", name);
        Ok(self.database.execute(&FORGET, parameters).await? > 0)
    }
}

static KEEP: Sql = Sql::pair(
    "INSERT INTO secret (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING",
    "
INSERT INTO secret (name, value, created_at)
VALUES (:name, :value, {now})
ON CONFLICT DO NOTHING",
);

static FIND: Sql = Sql::new("SELECT value FROM secret WHERE name = :name");

static FORGET: Sql = Sql::new("DELETE FROM secret WHERE name = :name");

#[derive(FromQueryResult)]
struct Row {
    value: String,
}

impl FileSecrets {
    /// Uses the file with the name of the database's file followed by `.secrets`.
    pub fn beside(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push(".secrets");
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs one step on the file, on a thread that may block while it waits for the lock.
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

/// The file, locked against other writers.
struct Held {
    lines: Vec<(String, String)>,
    /// Holds the lock until it is dropped.
    _file: File,
}

impl Held {
    /// Locks the file. Creates it if it does not exist.
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
            // Another writer may have replaced it while we waited.
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
        // A crash may have left this file. No other writer uses it, because we hold the lock.
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

/// Parses the lines. Fails on a line of any other form, because it may have been a key. If a new
/// key replaced it, no stored code would be right.
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
            "users other than its owner may read the file of secrets",
        ))
    }
}

fn unavailable(error: impl Into<BoxError>) -> StoreError {
    StoreError::Unavailable(error.into())
}
