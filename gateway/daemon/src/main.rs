//! `cnova-gateway`: a node with children. It keeps their twins and artifacts, relays what they say, and answers them
//! while its own parent is away.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use cnova_broker::{MosquittoSettings, mosquitto_acl, mosquitto_config};
use cnova_gateway::config::{Children, Config, ConfigError, LogFormat};
use cnova_gateway::event_loop::End;
use cnova_gateway::start::{self, StartError, Who, WhoError};
use cnova_gateway::support;
use cnova_link::support::SupportError;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// sysexits.h: an internal error; the supervisor starts the program again.
const EXIT_AGAIN: u8 = 70;
/// sysexits.h: a configuration error; starting again does not help.
const EXIT_CONFIG: u8 = 78;
/// Threads for reads of artifacts, name resolution and the like.
const BLOCKING_THREADS: usize = 6;
/// A thread that has nothing to do gives its memory back after this.
const BLOCKING_KEEP: Duration = Duration::from_secs(2);
/// What reads that are under way have to end in.
const LAST_READS: Duration = Duration::from_secs(2);
const MOSQUITTO_DIR: &str = "/etc/mosquitto/cnova";
const MAX_PACKET_BYTES: u32 = 2 << 20;

#[derive(Parser)]
#[command(name = "cnova-gateway", version, about = "A Cloudnova gateway")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the gateway.
    Run(ConfigFile),
    /// Checks configuration, certificates and trust, and says who this gateway is.
    Check(ConfigFile),
    /// Puts what somebody needs who helps from afar into one file, without anything that is secret.
    SupportBundle {
        #[command(flatten)]
        config: ConfigFile,
        /// The file; one named after the time, in this folder, unless it is said.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Prints what an external mosquitto needs to serve this gateway's children.
    PrintMosquittoConfig {
        #[command(flatten)]
        config: ConfigFile,
        /// Which of the files.
        #[arg(long, value_enum, default_value = "conf")]
        part: MosquittoPart,
    },
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration; its drop-ins are the files in the folder of the same name with `.d`.
    #[arg(long, default_value = "/etc/cnova/gateway.toml")]
    config: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum MosquittoPart {
    /// mosquitto.conf
    Conf,
    /// The access rules that it names.
    Acl,
    /// The authorities that it names, from the trust bundle.
    Ca,
}

/// Why the command did not do what it should.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Who(#[from] WhoError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Support(#[from] SupportError),
    #[error("{action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("the gateway must be started again: {0}")]
    Again(String),
    #[error("{0} names no [external_broker]: there is no mosquitto to configure")]
    NoBroker(PathBuf),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Who(_) | Self::NoBroker(_) => EXIT_CONFIG,
            Self::Again(_) => EXIT_AGAIN,
            Self::Start(_) | Self::Support(_) | Self::System { .. } => 1,
        }
    }
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(file) => run(&file.config),
        Command::Check(file) => check(&file.config),
        Command::SupportBundle { config, out } => make_bundle(&config.config, out),
        Command::PrintMosquittoConfig { config, part } => print_mosquitto(&config.config, part),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "cnova-gateway: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn make_bundle(settings: &Path, out: Option<PathBuf>) -> Result<(), Failure> {
    let text = support::make(settings, out)?;
    io::stdout().write_all(text.as_bytes()).map_err(system("cannot say so"))
}

fn system(action: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::System { action, source }
}

fn read(path: &Path) -> Result<(Config, Who), Failure> {
    let config = Config::load(path)?;
    let who = start::who(&config)?;
    Ok((config, who))
}

fn run(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path)?;
    log_to_stderr(config.log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP)
        .build()
        .map_err(system("no runtime"))?;
    let end = serve(&runtime, &config);
    runtime.shutdown_timeout(LAST_READS);
    match end? {
        End::Asked => Ok(()),
        End::Stalled(reason) | End::Damaged(reason) => Err(Failure::Again(reason)),
    }
}

fn serve(runtime: &Runtime, config: &Config) -> Result<End, Failure> {
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(system("no signal handler"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("no signal handler"))?;
        let identified = tokio::select! {
            identified = start::identify(config) => identified,
            _ = terminate.recv() => return Ok(End::Asked),
            _ = interrupt.recv() => return Ok(End::Asked),
        };
        let (who, keeper) = identified?;
        for warning in who.identity.warnings() {
            tracing::warn!("{warning}");
        }
        let (node, site) = (who.identity.node().clone(), who.site.clone());
        let mut started = start::start(config, who, keeper).await?;
        let children = match started.endpoint.local_addr() {
            Some(address) => format!("listening at {address}"),
            None => "over an external broker".into(),
        };
        tracing::info!(%node, %site, parent = %config.parent.node, children, version = env!("CARGO_PKG_VERSION"), "up");
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("asked to stop (SIGTERM)"),
                _ = interrupt.recv() => tracing::info!("asked to stop (SIGINT)"),
            }
        };
        let end = started.event_loop.run(started.sources, stop).await;
        if end == End::Asked {
            started.endpoint.shutdown().await;
            started.event_loop.shutdown().await;
        } else {
            tracing::error!(?end, "only a fresh process helps");
        }
        drop(started.lock);
        Ok(end)
    })
}

fn check(path: &Path) -> Result<(), Failure> {
    let (config, who) = read(path)?;
    let mut text = format!(
        "{} is in order: {} at {} under {} ({}), trust bundle {}, certificate until {} (seconds since 1970)\n",
        path.display(),
        who.identity.node(),
        who.site,
        config.parent.node,
        config.parent.address,
        who.identity.trust().contents().version,
        who.identity.not_after_s(),
    );
    for warning in who.identity.warnings() {
        text += &format!("warning: {warning}\n");
    }
    print(&text)
}

fn print_mosquitto(path: &Path, part: MosquittoPart) -> Result<(), Failure> {
    let (config, who) = read(path)?;
    let Children::Broker(broker) = &config.children else {
        return Err(Failure::NoBroker(path.to_owned()));
    };
    let at = |name: &str| Path::new(MOSQUITTO_DIR).join(name);
    print(&match part {
        MosquittoPart::Conf => mosquitto_config(&MosquittoSettings {
            bind: None,
            port: broker.port,
            cafile: at("ca.pem"),
            // Children expect the gateway's name in the certificate that they are shown.
            certfile: config.identity.certificate.clone(),
            keyfile: config.identity.key.clone(),
            acl_file: at("acl"),
            max_packet_bytes: MAX_PACKET_BYTES,
        }),
        MosquittoPart::Acl => mosquitto_acl(who.identity.node().as_str()),
        MosquittoPart::Ca => who.identity.trust().authorities().iter().map(|a| pem(a)).collect(),
    })
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|l| std::str::from_utf8(l).ok())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

fn print(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(system("cannot print"))
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}
