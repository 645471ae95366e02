//! cnova-hub: the root of a tree of edge nodes.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use cnova_broker::{MosquittoSettings, mosquitto_acl, mosquitto_config};
use cnova_hub::config::{Config, ConfigError, LogFormat};
use cnova_hub::event_loop::LoopError;
use cnova_hub::run::{self, RunError};
use cnova_hub::{api, support, tokens};
use cnova_link::support::SupportError;
use tracing_subscriber::EnvFilter;

/// The configuration or something that it names is wrong (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;
/// The message router no longer works: start the hub again (`EX_SOFTWARE`).
const EXIT_STALLED: u8 = 70;
/// The store fails (`EX_IOERR`).
const EXIT_STORE: u8 = 74;
/// Longest token on standard input.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Compilations, policies, uploads and chunks block; each has a bound of its own below this.
const BLOCKING_THREADS: usize = 32;
/// rumqttd tells of every subscription, with three lines each.
const LOG_FILTER: &str = "info,rumqttd=warn";
const MOSQUITTO_PORT: u16 = 8883;
const MOSQUITTO_PACKET_BYTES: u32 = 2 << 20;

/// Cloudnova Edge hub: takes manifests, places workloads, signs twins and shows the fleet.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct ConfigPath {
    /// The configuration.
    #[arg(long, default_value = "/etc/cnova/hub.toml", env = "CNOVA_HUB_CONFIG")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Run the hub.
    Run {
        #[command(flatten)]
        config: ConfigPath,
        /// Rename a damaged store and begin a new epoch without applications, instead of refusing to start.
        #[arg(long)]
        set_aside_corrupt_store: bool,
    },
    /// Check the configuration and everything that it names, and change nothing.
    Check {
        #[command(flatten)]
        config: ConfigPath,
    },
    /// Put what somebody needs who helps from afar into one file, without anything that is secret.
    SupportBundle {
        #[command(flatten)]
        config: ConfigPath,
        /// The file; one named after the time, in this folder, unless it is said.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Print the configuration for a mosquitto beside the hub, or with --acl its access rules.
    PrintMosquittoConfig {
        #[command(flatten)]
        config: ConfigPath,
        /// Print the ACL file instead.
        #[arg(long)]
        acl: bool,
        /// The folder in which mosquitto finds ca.pem, cert.pem, key.pem and acl.
        #[arg(long, default_value = "/etc/mosquitto/cnova")]
        folder: PathBuf,
    },
    /// Print the OpenAPI document of the HTTP API.
    Openapi,
    /// Read a token from standard input and print what belongs into tokens.toml.
    HashToken,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Support(#[from] SupportError),
    #[error("{0}")]
    Token(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Config(_) => EXIT_CONFIG.into(),
            Failure::Run(error) => match error {
                RunError::Loop(LoopError::Stalled(_)) => EXIT_STALLED.into(),
                RunError::Loop(LoopError::Store(_) | LoopError::StoreFails(_)) | RunError::Store(_) => {
                    EXIT_STORE.into()
                }
                RunError::Identity(_)
                | RunError::OtherName { .. }
                | RunError::Issuer(_)
                | RunError::SigningKey(_)
                | RunError::Tokens(_)
                | RunError::PolicyFolder { .. }
                | RunError::Policy { .. }
                | RunError::NoWorker { .. } => EXIT_CONFIG.into(),
                _ => ExitCode::FAILURE,
            },
            Failure::Support(_) | Failure::Token(_) | Failure::Io(_) => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    match perform(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cnova-hub: {failure}");
            failure.exit_code()
        }
    }
}

fn perform(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run {
            config,
            set_aside_corrupt_store,
        } => {
            let config = Config::load(&config.config)?;
            log(config.log);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .max_blocking_threads(BLOCKING_THREADS)
                .enable_all()
                .build()?;
            let result = runtime.block_on(run::run(config, set_aside_corrupt_store));
            // A compilation may still run; its worker dies with this process.
            runtime.shutdown_background();
            Ok(result?)
        }
        Command::Check { config } => {
            let config = Config::load(&config.config)?;
            log(config.log);
            let checked = run::check(&config)?;
            let (node, kid) = (checked.identity.node().clone(), checked.signer.kid());
            print(&format!(
                "{}: good; hub {node}, signing key {kid}\n",
                config.path.display()
            ))
        }
        Command::SupportBundle { config, out } => print(&support::make(&config.config, out)?),
        Command::PrintMosquittoConfig { config, acl, folder } => {
            let config = Config::load(&config.config)?;
            let node = match &config.node {
                Some(node) => node.clone(),
                None => config.identity.load().map_err(RunError::from)?.node().clone(),
            };
            if acl {
                return print(&mosquitto_acl(node.as_str()));
            }
            print(&mosquitto_config(&MosquittoSettings {
                bind: None,
                port: MOSQUITTO_PORT,
                cafile: folder.join("ca.pem"),
                certfile: folder.join("cert.pem"),
                keyfile: folder.join("key.pem"),
                acl_file: folder.join("acl"),
                max_packet_bytes: MOSQUITTO_PACKET_BYTES,
            }))
        }
        Command::Openapi => print(&format!("{:#}\n", api::openapi::document())),
        Command::HashToken => {
            let mut token = String::new();
            io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut token)?;
            print(&format!("{}\n", tokens::hash(&token).map_err(Failure::Token)?))
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        // `cnova-hub openapi | head` is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}
