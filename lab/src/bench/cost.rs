//! The cost of a message: CPU time, WAL, commits, dead tuples.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use sqlx::PgPool;

use crate::kit::{
    environment::variable,
    process::{Process, Role},
};

/// The usage up to some moment. CPU times are sums over all processes of a part, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub api: f64,
    pub processor: f64,
    pub consumer: f64,
    pub postgres: f64,
    pub kafka: f64,
    /// The CPU time of the clients and the gateway.
    pub lab: f64,
    pub wal_bytes: f64,
    pub commits: f64,
    pub dead_tuples: f64,
}

impl Usage {
    /// Returns the usage of these processes, and of PostgreSQL for this database, so far.
    pub async fn now<'a>(
        processes: impl Iterator<Item = &'a Arc<Process>>,
        database: &PgPool,
    ) -> anyhow::Result<Self> {
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8,
            (SELECT xact_commit::float8 FROM pg_stat_database WHERE datname = current_database()),
            (SELECT sum(n_tup_upd + n_tup_del)::float8 FROM pg_stat_user_tables)";
        let (wal_bytes, commits, dead_tuples) =
            sqlx::query_as::<_, (f64, f64, f64)>(sql).fetch_one(database).await?;
        let own = |pid| cpu_time(pid).unwrap_or(0.0);
        let mut usage = Self {
            postgres: postgres_cpu()?,
            kafka: own(variable("TEST_KAFKA_PID")?.parse()?),
            lab: own(std::process::id()),
            wal_bytes,
            commits,
            dead_tuples,
            ..Self::default()
        };
        for process in processes {
            let used = process.id().map_or(0.0, own);
            match process.role {
                Role::Api => usage.api += used,
                Role::Processor => usage.processor += used,
                Role::Consumer => usage.consumer += used,
                Role::Messager => {}
            }
        }
        Ok(usage)
    }

    /// Returns the CPU time of the service's processes.
    pub fn ours(&self) -> f64 {
        self.api + self.processor + self.consumer
    }

    /// Returns the usage since `before`, divided by the number of messages.
    #[must_use]
    pub fn since(self, before: Self, messages: f64) -> Self {
        let each = |of: fn(&Self) -> f64| (of(&self) - of(&before)) / messages;
        Self {
            api: each(|it| it.api),
            processor: each(|it| it.processor),
            consumer: each(|it| it.consumer),
            postgres: each(|it| it.postgres),
            kafka: each(|it| it.kafka),
            lab: each(|it| it.lab),
            wal_bytes: each(|it| it.wal_bytes),
            commits: each(|it| it.commits),
            dead_tuples: each(|it| it.dead_tuples),
        }
    }
}

/// Returns the CPU time of a process so far, in microseconds.
pub fn cpu_time(pid: u32) -> Option<f64> {
    cpu_of(pid).map(|cpu| cpu.own)
}

/// CPU time in microseconds.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    parent: u32,
    own: f64,
    /// The time of children that have ended.
    ended: f64,
}

/// Returns the CPU time of the server and of all its processes, including ended ones.
fn postgres_cpu() -> anyhow::Result<f64> {
    let file = Path::new(&variable("TEST_PG_DATA")?).join("postmaster.pid");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let server: u32 = text.lines().next().context("postmaster.pid is empty")?.trim().parse()?;
    let Cpu { own, ended, .. } = cpu_of(server).context("PostgreSQL does not run")?;
    let processes = std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(cpu_of);
    let children: f64 = processes.filter(|it| it.parent == server).map(|it| it.own).sum();
    Ok(own + ended + children)
}

/// Reads `/proc/<pid>/stat` (proc(5)): parent is field 4, the times are 14 to 17, in ticks of 10
/// ms.
fn cpu_of(pid: u32) -> Option<Cpu> {
    const TICK: f64 = 10_000.0;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may have spaces and brackets.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let time = |field: usize| fields.get(field - 3)?.parse::<f64>().ok().map(|ticks| ticks * TICK);
    Some(Cpu {
        parent: fields.get(1)?.parse().ok()?,
        own: time(14)? + time(15)?,
        ended: time(16)? + time(17)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_parent_and_uses_time() {
        let own = cpu_of(std::process::id()).unwrap();

        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(cpu_of(own.parent).is_some());
    }
}
