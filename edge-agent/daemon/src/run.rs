//! Starting: everything that the event loop needs, or a clear reason why not.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cnova_agent_core::standing::own_boots;
use cnova_devices::{Capacity, ThresholdError};
use cnova_link::config::ConfigError;
use cnova_link::enrol::{Before, Identified, Keeper, identify};
use cnova_link::{
    Authorities, FloorClock, Identity, IdentityError, TlsError, Uplink, UplinkConfig, UplinkEvent, client_tls_with,
};
use cnova_shared::ids::{InvalidName, NodeId, SitePath};
use cnova_shared::trust::TrustState;
use cnova_shared::wire::v1::{Alarm, Capabilities};
use cnova_store::{ArtifactError, Artifacts, SetAside};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::box_key::Chest;
use crate::catalog::Catalog;
use crate::config::{AgentConfig, LogFormat};
use crate::event_loop::{EventLoop, Inputs, Parts, Signals, hub_audience};
use crate::groups::Groups;
use crate::hardware::{Hardware, Inventory};
use crate::launch::Ground;
use crate::ledger::{Ledger, LedgerError};
use crate::sensors::Sensors;
use crate::status;
use crate::supervisor::{Supervisor, Times};
use crate::trusted::{self, Trusted};

/// Threads for calls that block on the disk or on a runtime that hangs; they come when needed and go after a second.
const BLOCKING_THREADS: usize = 16;
const BLOCKING_STACK_BYTES: usize = 256 * 1024;
const RUNTIME_EVENTS: usize = 256;

/// Why the agent did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The configuration and the certificate do not agree.
    #[error("{what} is {configured} in the configuration and {certified} in the certificate: one of them is wrong")]
    Disagree {
        /// On what.
        what: &'static str,
        /// What the configuration says.
        configured: String,
        /// What the certificate says.
        certified: String,
    },
    /// The launch log.
    #[error(transparent)]
    Measure(#[from] cnova_root_of_trust::measurer::MeasureError),
    /// Nobody says where the node hangs.
    #[error("the certificate names no site: say it in the configuration, such as site = \"plant-7/line-2/plc-14\"")]
    NoSite,
    /// The thresholds of power and heat.
    #[error("[power] {0}")]
    Power(#[from] ThresholdError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The state folder cannot be used.
    #[error("cannot {action} {path}: {source}; state_dir must be a folder that this user may write")]
    StateFolder {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Another agent uses the state folder.
    #[error("another agent uses {path}{by}: stop it first, or give this one a state_dir of its own")]
    Locked {
        /// The state folder.
        path: PathBuf,
        /// Its process, when it is known.
        by: String,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The artifacts.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The system gave no randomness.
    #[error("the system gives no random numbers")]
    Random,
    /// Something that every process needs was not given.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The task of the link ended, which it never should.
    #[error("the link to the parent broke down inside the agent: it must be started again")]
    LinkGone,
    /// The name of the hub is no name.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// Who this node is and where it hangs, by configuration and certificate.
pub(crate) struct Place {
    pub(crate) node: NodeId,
    pub(crate) site: SitePath,
}

pub(crate) fn place(config: &AgentConfig, identity: &Identity) -> Result<Place, StartError> {
    let node = identity.node().clone();
    if let Some(said) = config.node.as_ref().filter(|said| **said != node) {
        let (configured, certified) = (said.to_string(), node.to_string());
        return Err(StartError::Disagree {
            what: "node",
            configured,
            certified,
        });
    }
    let site = match (&config.site, identity.site()) {
        (Some(said), Some(certified)) if said != certified => {
            let (configured, certified) = (said.to_string(), certified.to_string());
            return Err(StartError::Disagree {
                what: "site",
                configured,
                certified,
            });
        }
        (Some(site), _) | (None, Some(site)) => site.clone(),
        (None, None) => return Err(StartError::NoSite),
    };
    Ok(Place { node, site })
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// [`StartError`]; once it has started, nothing but a signal ends it.
pub fn run(config: AgentConfig) -> Result<(), StartError> {
    start_logging(&config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(|source| StartError::System {
            action: "start the event loop",
            source,
        })?;
    runtime.block_on(run_in(&config))
}

async fn run_in(config: &AgentConfig) -> Result<(), StartError> {
    let (identity, keeper) = who(config).await?;
    let place = place(config, &identity)?;
    let _lock = prepare_state(&config.state_dir, &config.run_dir())?;
    let catalog = Catalog::discover(&config.runtime_dir);
    let mut alarms = catalog.alarms.clone();
    let Machine {
        hardware,
        groups,
        capacity,
        sensors,
        alarms: of_machine,
    } = look_at_machine(config)?;
    alarms.extend(of_machine);
    let (ledger, set_aside) = Ledger::open(&config.ledger_path(), wall_ms())?;
    alarms.extend(set_aside.as_ref().map(set_aside_alarm));
    log_alarms(&alarms);
    let trusted = ask_tpm(&ledger, &identity, config, &place).await?;
    alarms.extend(trusted.alarms);
    let chest = Arc::new(Chest::default());
    let artifacts = Arc::new(Artifacts::open(&config.artifacts_dir(), config.artifact_bytes())?);
    let clock = Arc::new(FloorClock::of(&identity));
    let core_config = cnova_agent_core::Config {
        node: place.node.clone(),
        site: place.site,
        parent: config.parent.node.clone(),
        labels: config.labels.clone(),
        capabilities: capabilities(&catalog, capacity, sensors.inventory()),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        boot: random_id()?,
        trust: identity.trust().clone(),
        power: sensors.power(),
        root: trusted.root,
        alarms,
        key: identity.signer().public_key().clone(),
        renew_s: identity.renew_s(),
        box_key: Err("it has not been opened yet".to_owned()),
    };
    let signals = Signals::new().map_err(no_signals)?;
    let (said_sender, said) = mpsc::channel(RUNTIME_EVENTS);
    let ground = Ground {
        run_dir: config.run_dir(),
        folders: config.folders(),
        catalog,
        artifacts: artifacts.clone(),
        groups,
        hardware,
        witness: trusted.witness.clone(),
        chest: chest.clone(),
    };
    let supervisor = Supervisor::new(ground, Times::of(&config.runtime), trusted.unmeasured, said_sender);
    let (authorities, uplink, uplink_events) = dial(config, place.node, &identity, &clock)?;
    let questions = status::serve(&config.state_dir).map_err(no_questions(&config.state_dir))?;
    let inputs = Inputs {
        installed: keep_certified(keeper, &identity, &clock),
        uplink: uplink_events,
        said,
        sensed: sensors.start(Duration::from_secs(config.sensors.seconds.max(1))),
        questions,
        signals,
    };
    let parts = Parts {
        config: core_config,
        identity,
        certificate: config.identity.certificate.clone(),
        clock,
        authorities,
        ledger,
        ledger_path: config.ledger_path(),
        run_dir: config.run_dir(),
        artifacts,
        supervisor,
        uplink,
        witness: trusted.witness,
        ledger_key: trusted.ledger_key,
        chest,
        keeper: trusted.keeper,
    };
    EventLoop::new(parts, hub_audience()?).run(inputs).await
}

/// Begins to dial the parent; it must be certified by one of these authorities.
fn dial(
    config: &AgentConfig,
    node: NodeId,
    identity: &Arc<Identity>,
    clock: &Arc<FloorClock>,
) -> Result<(Arc<Authorities>, Uplink, mpsc::Receiver<UplinkEvent>), StartError> {
    // The flashed ones, until the core has read from the ledger which ones came since; before that nothing is dialled.
    let authorities = Arc::new(Authorities::of(&identity.trust().authorities())?);
    let parent = config.parent.node.clone();
    let tls = client_tls_with(identity, &parent, clock.clone(), authorities.clone())?;
    let up = UplinkConfig::new(config.parent.address.clone(), node, parent, tls);
    let (uplink, events) = Uplink::start(up);
    Ok((authorities, uplink, events))
}

/// What the TPM says of this start, with the boots that are approved for this node by what its ledger holds. A ledger that
/// cannot be read now is read again by the core, which then sets it right.
async fn ask_tpm(
    ledger: &Ledger,
    identity: &Arc<Identity>,
    config: &AgentConfig,
    place: &Place,
) -> Result<Trusted, StartError> {
    let stored = ledger.load().await.map(|s| s.trust).unwrap_or_default();
    let (trust, _) = TrustState::restore(identity.trust().clone(), stored);
    let boots = own_boots(&trust, &place.node, &place.site, &config.labels);
    let trusted = trusted::ask(identity, config, boots)?;
    identity.endorse_in_time();
    Ok(trusted)
}

/// Who this node is; it enrols, and may have to wait for it, where it has no certificate yet.
async fn who(config: &AgentConfig) -> Result<(Arc<Identity>, Option<Keeper>), StartError> {
    let Identified { identity, keeper } = identify(Before {
        identity: &config.identity,
        enrolment: config.enrolment.as_ref(),
        parent: &config.parent.node,
        node: config.node.as_ref(),
        site: config.site.as_ref(),
        works_uncertified: true,
    })
    .await?;
    for warning in identity.warnings() {
        tracing::warn!("{warning}");
    }
    Ok((Arc::new(identity), keeper))
}

/// Renewal times of the certificates that the keeper gets.
fn keep_certified(keeper: Option<Keeper>, identity: &Arc<Identity>, clock: &Arc<FloorClock>) -> mpsc::Receiver<u64> {
    let (sender, installed) = mpsc::channel(1);
    if let Some(keeper) = keeper {
        tokio::spawn(keeper.run(identity.clone(), clock.clone(), sender));
    }
    installed
}

fn no_questions(state_dir: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = state_dir.to_owned();
    move |source| StartError::StateFolder {
        action: "listen for `cnova-agent status` in",
        path,
        source,
    }
}

fn no_signals(source: io::Error) -> StartError {
    StartError::System {
        action: "listen for signals",
        source,
    }
}

fn log_alarms(alarms: &[Alarm]) {
    for Alarm { code, detail } in alarms {
        tracing::warn!(alarm = code, "{detail}");
    }
}

fn capabilities(catalog: &Catalog, capacity: Capacity, inventory: &Inventory) -> Capabilities {
    Capabilities {
        runtimes: catalog.capabilities(),
        memory_bytes: capacity.memory_bytes,
        cpu_millis: capacity.cpu_millis,
        accelerators: inventory.accelerators.clone(),
        devices: inventory.devices.clone(),
    }
}

/// What was found out about the machine.
struct Machine {
    hardware: Hardware,
    groups: Groups,
    capacity: Capacity,
    sensors: Sensors,
    alarms: Vec<Alarm>,
}

fn look_at_machine(config: &AgentConfig) -> Result<Machine, StartError> {
    config.power.check()?;
    let root = &config.sensors.root;
    let (hardware, devices_alarm) = Hardware::new(root.clone(), config.devices.clone());
    let own_groups = cnova_devices::Groups::own(root);
    let (groups, groups_alarm) = Groups::find(&config.state_dir, config.runtime.cgroup_parent.as_deref());
    Ok(Machine {
        capacity: config.capacity(&groups.limits(own_groups)),
        sensors: Sensors::new(root.clone(), config.power, hardware.clone()),
        alarms: [devices_alarm, groups_alarm].into_iter().flatten().collect(),
        hardware,
        groups,
    })
}

pub(crate) fn set_aside_alarm(aside: &SetAside) -> Alarm {
    let detail = format!(
        "the ledger was damaged ({}) and is kept as {}; the node began anew and asks for its twin again",
        aside.reason,
        aside.path.display()
    );
    Alarm {
        code: "store-set-aside".into(),
        detail,
    }
}

/// Makes the state folder and takes it for this process.
pub(crate) fn prepare_state(state_dir: &Path, run_dir: &Path) -> Result<File, StartError> {
    let fail = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StartError::StateFolder { action, path, source }
    };
    fs::create_dir_all(state_dir).map_err(fail("create", state_dir))?;
    fs::create_dir_all(run_dir).map_err(fail("create", run_dir))?;
    let path = state_dir.join("agent.lock");
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail("write", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let by = fs::read_to_string(&path).ok().filter(|pid| !pid.is_empty());
            let by = by.map(|pid| format!(" (process {})", pid.trim())).unwrap_or_default();
            return Err(StartError::Locked {
                path: state_dir.to_owned(),
                by,
            });
        }
        Err(TryLockError::Error(source)) => return Err(fail("lock", &path)(source)),
    }
    // Only for the other one's message: a full disk must not keep the agent from starting.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
}

pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn random_id() -> Result<String, StartError> {
    use ring::rand::SecureRandom;
    let mut bytes = [0_u8; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StartError::Random)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn start_logging(config: &AgentConfig) {
    use tracing_subscriber::EnvFilter;
    let said = std::env::var("RUST_LOG").ok().or_else(|| config.log.level.clone());
    let filter = EnvFilter::try_new(said.as_deref().unwrap_or("info")).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    // Set twice only by tests.
    let _ = match config.log.format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
