//! cnova-agent: keeps one device at what its twin says, whether or not anyone above it can be reached.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cnova_agent::{check, config::AgentConfig, run};

/// The Cloudnova edge agent.
#[derive(Debug, Parser)]
#[command(name = "cnova-agent", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent until SIGTERM. Workloads run on when it ends.
    Run {
        /// Its configuration; drop-ins are read from the folder of the same name with `.d`.
        #[arg(long, default_value = "/etc/cnova/agent.toml")]
        config: PathBuf,
    },
    /// Check the configuration, the identity, the trust bundle, the runtimes and the state folder.
    Check {
        /// Its configuration.
        #[arg(long, default_value = "/etc/cnova/agent.toml")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    keep_memory_small();
    match Arguments::parse().verb {
        Verb::Run { config } => match AgentConfig::load(&config)
            .map_err(run::StartError::from)
            .and_then(run::run)
        {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Logging may not have been set up yet.
                let _ = writeln!(std::io::stderr(), "cnova-agent: {error}");
                ExitCode::FAILURE
            }
        },
        Verb::Check { config } => {
            let (text, ok) = check::check(&config);
            let _ = std::io::stdout().write_all(text.as_bytes());
            if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

/// glibc gives each thread a heap of its own; the few that come and go here would leave theirs behind.
fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before any other thread exists; it sets two numbers inside the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
    }
}
