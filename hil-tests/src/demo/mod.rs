//! `make demo`: the whole line on one machine, as separate processes on loopback.
//!
//! Every step is done through the programs that people use, and every number printed was measured in this run.

mod attack;
pub(crate) mod fleet;
mod runtimes;
mod story;

use std::path::PathBuf;

use thiserror::Error;

/// What the demo is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps everything; made anew.
    pub dir: PathBuf,
    /// The folder with the programs.
    pub bin: PathBuf,
    /// The repository's `examples` folder.
    pub examples: PathBuf,
    /// Whether the fleet stays up at the end.
    pub keep: bool,
}

/// What went wrong, in the words of the step that it went wrong in.
#[derive(Debug, Error)]
pub enum DemoError {
    /// A program could not be run.
    #[error("{program}: {reason}")]
    Program {
        /// Which.
        program: String,
        /// Why.
        reason: String,
    },
    /// Something did not happen.
    #[error("waited {seconds} s and it did not happen: {what} (logs: {logs})")]
    Waited {
        /// How long.
        seconds: u64,
        /// For what.
        what: String,
        /// Where to look.
        logs: String,
    },
    /// Something is not as it should be.
    #[error("{0}")]
    Wrong(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs the demo.
///
/// # Errors
/// The first thing that did not go as it should; nothing is left running then either.
pub fn run(options: Options) -> Result<(), DemoError> {
    let mut fleet = fleet::Fleet::new(options)?;
    let told = story::tell(&mut fleet);
    if told.is_ok() && fleet.options().keep {
        fleet.leave();
    } else {
        fleet.stop_all();
    }
    told
}
