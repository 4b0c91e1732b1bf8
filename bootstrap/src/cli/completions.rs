//! Shell completions and man pages, made of the definitions of the command line.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap_complete::{Shell, generate};

use super::Output;

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct CompletionsArgs {
    /// The shell. Its documentation says where it looks for completions.
    shell: Shell,
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ManArgs {
    /// Write a page for each command into this folder, which is made. Without it, print the first page.
    folder: Option<PathBuf>,
}

/// Prints the completions of `command`.
pub fn completions(mut command: clap::Command, args: &CompletionsArgs) {
    let name = command.get_name().to_owned();
    generate(args.shell, &mut command, name, &mut Output);
}

/// Prints the man page of `command`, or writes those of all its commands.
pub fn man(command: clap::Command, args: &ManArgs) -> anyhow::Result<()> {
    match &args.folder {
        Some(folder) => {
            write(command, folder).with_context(|| format!("write to {}", folder.display()))
        }
        None => Ok(clap_mangen::Man::new(command).render(&mut Output)?),
    }
}

fn write(command: clap::Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
