//! `messager` with its defaults: an SQLite file, the embedded queue, the console.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use ports::free_port;
use sqlx::{
    Connection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::time::sleep;

use crate::{
    bench::{
        Setting,
        measure::{closed, submissions},
        report::{Found, Row, Spread},
    },
    kit::process::{Process, Role},
};

const CONNECTIONS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let bins = std::slice::from_ref(&setting.bins);
    let (mut ours, mut inserts, mut memory) = (vec![], vec![], vec![]);
    for round in 0..setting.repeats {
        inserts
            .push(insert_rate(&setting.folder.join(format!("{round}.baseline")), setting).await?);
        let file = setting.folder.join(format!("{round}.db"));
        let (port, metrics_port) = (free_port(), free_port());
        let env = [
            ("APP_PORT", port.to_string()),
            ("SQLITE_PATH", file.display().to_string()),
            ("LIMIT_PHONE", "off".to_owned()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let process = Process::new(Role::Messager, 1, bins, &setting.folder, metrics_port, env);
        process.start()?;
        process.ready(Duration::from_secs(20)).await?;
        let begun = Instant::now();
        let load = closed(port, CONNECTIONS, setting.measured, 0, &submissions()).await?;
        let sent = load.only_good()?.good();
        let mut database = SqliteConnectOptions::new().filename(&file).read_only(true);
        database = database.busy_timeout(Duration::from_secs(5));
        let mut database = SqliteConnection::connect_with(&database).await?;
        loop {
            let sql = "SELECT count(*) FROM delivery WHERE state = 'sent'";
            let done: i64 = sqlx::query_scalar(sql).fetch_one(&mut database).await?;
            if usize::try_from(done)? == sent {
                break;
            }
            ensure!(begun.elapsed() < setting.measured + PATIENCE, "{done} of {sent} were sent");
            sleep(Duration::from_millis(50)).await;
        }
        #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
        ours.push(sent as f64 / begun.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "KiB of memory")]
        memory.push(process.memory().unwrap_or(0) as f64 / 1_024.0);
        database.close().await?;
        process.terminate(Duration::from_secs(20)).await;
    }
    let rows = vec![
        Row::new("embedded", "accepted to console, all done", "/s", Spread::of(ours))
            .against("SQLite, one insert a commit", Spread::of(inserts))
            .at_least(2.0, 3.0),
        Row::new("embedded", "memory of messager", "MiB", Spread::of(memory)).at_most(48.0, 24.0),
    ];
    Ok(rows.into())
}

/// Measures single-row commits a second, with the pragmas of the service.
async fn insert_rate(file: &Path, setting: &Setting) -> anyhow::Result<f64> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut database = SqliteConnection::connect_with(&options).await?;
    let table =
        "CREATE TABLE outbox (sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, phone TEXT,
        code TEXT, trace TEXT, accepted_at INTEGER, expires_at INTEGER)";
    sqlx::query(table).execute(&mut database).await?;
    let begun = Instant::now();
    let mut rows = 0_u32;
    while begun.elapsed() < setting.measured / 3 {
        let insert = "INSERT INTO outbox (id, phone, code, trace, accepted_at, expires_at)
            VALUES (hex(randomblob(16)), '7900000000000', '482915',
                '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 0, 600000)";
        sqlx::query(insert).execute(&mut database).await?;
        rows += 1;
    }
    let rate = f64::from(rows) / begun.elapsed().as_secs_f64();
    database.close().await?;
    Ok(rate)
}
