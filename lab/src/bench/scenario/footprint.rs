//! Start-up time and size of the binaries.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::process::Command;

use super::prepare;
use crate::{
    bench::{
        Setting,
        report::{Found, Row, Spread},
    },
    kit::process::Role,
};

const PATIENCE: Duration = Duration::from_secs(20);

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let testbed = prepare(setting, (1, 1, 1), &[]).await?;
    let mut rows = Vec::new();
    for process in &testbed.processes {
        let mut times = Vec::new();
        for _ in 0..setting.repeats {
            let begun = Instant::now();
            process.start()?;
            process.ready(PATIENCE).await?;
            times.push(begun.elapsed().as_secs_f64());
            process.terminate(PATIENCE).await;
        }
        let figure = format!("{}, start to ready", process.role);
        rows.push(Row::new("footprint", figure, "s", Spread::of(times)).at_most(0.5, 0.25));
    }
    testbed.drop_database().await?;
    for role in [Role::Api, Role::Processor, Role::Consumer, Role::Messager] {
        let stripped = setting.folder.join("stripped");
        let status = Command::new("strip")
            .arg("-o")
            .args([&stripped, &setting.bin(&role.to_string())])
            .status()
            .await?;
        ensure!(status.success(), "strip: {status}");
        #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
        let mib = std::fs::metadata(&stripped)?.len() as f64 / 1_048_576.0;
        let figure = format!("{role}, stripped");
        rows.push(Row::new("footprint", figure, "MiB", Spread::once(mib)).at_most(30.0, 15.0));
    }
    Ok(rows.into())
}
