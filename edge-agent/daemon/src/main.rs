//! cnova-agent: keeps one device at what its twin says, whether or not anyone above it can be reached.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cnova_agent::{check, config::AgentConfig, run, status, support};

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
    /// How this node stands: its workloads with their reasons, resources, power. Works without any network.
    Status {
        /// The configuration of the agent that runs here.
        #[arg(long, default_value = "/etc/cnova/agent.toml")]
        config: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Whether the system that runs has proved itself: ends with 0 when it has, 1 when it has not in its time, 3 while that
    /// is open, and 2 when no agent answers; 4 when none can yet, as the node has no certificate and waits to be enrolled.
    /// What decides over a slot at boot asks this.
    SystemGood {
        /// The configuration of the agent that runs here.
        #[arg(long, default_value = "/etc/cnova/agent.toml")]
        config: PathBuf,
    },
    /// Put what somebody needs who helps from afar into one file, without anything that is secret. Works while the agent is
    /// down.
    SupportBundle {
        /// The agent's configuration.
        #[arg(long, default_value = "/etc/cnova/agent.toml")]
        config: PathBuf,
        /// The file; one named after the time, in this folder, unless it is said.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Put the ends of the workloads' logs in, too. Nobody knows what workloads print.
        #[arg(long)]
        logs: bool,
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
        Verb::Status { config, json } => print_status(&config, json),
        Verb::SystemGood { config } => system_good(&config),
        Verb::SupportBundle { config, out, logs } => print_bundle(&support::Wanted { config, out, logs }),
        Verb::Check { config } => {
            let (text, ok) = check::check(&config);
            let _ = std::io::stdout().write_all(text.as_bytes());
            if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn print_bundle(wanted: &support::Wanted) -> ExitCode {
    match support::make(wanted) {
        Ok(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cnova-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_status(config: &Path, json: bool) -> ExitCode {
    let config = match AgentConfig::load(config) {
        Ok(config) => config,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cnova-agent: {error}");
            return ExitCode::FAILURE;
        }
    };
    match status::ask(&config) {
        Ok(s) => {
            let text = if json {
                serde_json::to_string_pretty(&s).unwrap_or_default() + "\n"
            } else {
                status::text(&s)
            };
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cnova-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn system_good(config: &Path) -> ExitCode {
    let say = |error: &dyn std::fmt::Display| {
        let _ = writeln!(std::io::stderr(), "cnova-agent: {error}");
    };
    let config = match AgentConfig::load(config) {
        Ok(config) => config,
        Err(error) => {
            say(&error);
            return ExitCode::from(2);
        }
    };
    match status::ask(&config) {
        Ok(status) => match status.system_good {
            Some(true) => ExitCode::SUCCESS,
            Some(false) => ExitCode::from(1),
            None => ExitCode::from(3),
        },
        Err(error) => {
            say(&error);
            // It answers once it knows who it is.
            let is_new = config.enrolment.is_some() && !config.identity.certificate.try_exists().unwrap_or(true);
            ExitCode::from(if is_new { 4 } else { 2 })
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
