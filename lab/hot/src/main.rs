//! Counts the instructions of the pure functions on the path of each message.
//!
//! Times on a shared machine vary, and the number of instructions does not. valgrind's callgrind
//! runs each case for N and for 2N rounds. The difference is the cost of N rounds.

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
    /// Count, and compare with a file.
    ///
    /// Exits with 1 if a function takes more instructions than before. Exits with 0 if another
    /// compiler or another kind of processor counted, because the counts cannot be compared.
    Check {
        file: PathBuf,
        /// The share by which a function may take more instructions.
        #[arg(long, default_value_t = 0.05)]
        tolerance: f64,
    },
    /// Count, and write the file.
    Accept { file: PathBuf },
    /// Run a case for valgrind.
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
                println!("not compared: the file was counted by {}", before.counter());
                return Ok(ExitCode::SUCCESS);
            }
            let worse = now.worse_than(&before, tolerance);
            for line in &worse {
                println!("{line}");
            }
            if !worse.is_empty() {
                println!("if this is intended, run `make instructions-accept`");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
