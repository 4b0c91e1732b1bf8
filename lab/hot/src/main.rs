//! Counts the instructions of the pure functions that each message runs through.
//!
//! Time on a shared machine is noise; how many instructions a function takes is not. valgrind's
//! callgrind runs each case for N and for 2N rounds, and the difference is what N rounds take.

mod case;
mod counts;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{case::Cases, counts::Counts};

#[derive(Debug, Parser)]
#[command(version, about = "Counts the instructions of hot functions, under valgrind.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count, and compare with what a file says.
    ///
    /// Exits with 1 if a function takes more than before. Where another compiler or another
    /// kind of processor counted, nothing can be said, and so it exits with 0.
    Check {
        file: PathBuf,
        /// What is no regression, as a share.
        #[arg(long, default_value_t = 0.05)]
        tolerance: f64,
    },
    /// Count, and write the file.
    Accept { file: PathBuf },
    /// Run a case so often: what valgrind looks at.
    #[command(hide = true)]
    Run { case: String, rounds: u32 },
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Run { case, rounds } => Cases::new()?.run(&case, rounds)?,
        Command::Accept { file } => Counts::here()?.write(&file)?,
        Command::Check { file, tolerance } => {
            let (before, now) = (Counts::read(&file)?, Counts::here()?);
            print!("{}", now.beside(&before));
            if !now.is_comparable_with(&before) {
                println!("not compared: counted by {} before", before.counter());
                return Ok(ExitCode::SUCCESS);
            }
            let worse = now.worse_than(&before, tolerance);
            for line in &worse {
                println!("{line}");
            }
            if !worse.is_empty() {
                println!("if that is meant: make instructions-accept");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
