//! From a configuration to a running gateway.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cnova_broker::{AnyEndpoint, EndpointError};
use cnova_gateway_core as core;
use cnova_link::enrol::{self, Before, Door, DoorLimits, Identified, Keeper};
use cnova_link::{Authorities, FloorClock, Identity, IdentityError, TlsError, Witness};
use cnova_shared::ids::{InvalidName, NodeId, SitePath};
use cnova_shared::trust::TrustState;
use cnova_store::ArtifactError;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cache::{Cache, CacheError};
use crate::clock::wall_ms;
use crate::config::Config;
use crate::doorway::Doorway;
use crate::downstream;
use crate::event_loop::{EventLoop, Parts, Sources};
use crate::seal::Sealer;
use crate::store::{Found, Store, StoreError};
use crate::trust::Trust;
use crate::upstream::Upstream;

const LOCK: &str = "lock";
const ARTIFACTS: &str = "artifacts";

/// Who this gateway is, after configuration and certificate were held against each other.
#[derive(Debug)]
pub struct Who {
    /// Certificate, key, trust.
    pub identity: Arc<Identity>,
    /// Its place in the tree.
    pub site: SitePath,
}

/// Why configuration and identity do not fit.
#[derive(Debug, thiserror::Error)]
pub enum WhoError {
    /// The identity cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is another node's.
    #[error("the configuration says that this is {configured}, its certificate says {certified}: correct one of them")]
    Node {
        /// In the configuration.
        configured: NodeId,
        /// In the certificate.
        certified: NodeId,
    },
    /// The certificate is for another place; the parent would refuse it.
    #[error("the configuration puts this at {configured}, its certificate says {certified}: correct one of them")]
    Site {
        /// In the configuration.
        configured: SitePath,
        /// In the certificate.
        certified: SitePath,
    },
    /// Nobody says where it is.
    #[error("neither the configuration nor the certificate names a site: add site = \"...\" to the configuration")]
    NoSite,
    /// It would be its own parent.
    #[error("{0} is named as its own parent: correct parent.node")]
    OwnParent(NodeId),
}

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder cannot be used.
    #[error("cannot {action} {path}: {source}; give the folder to the user that the gateway runs as")]
    StateDir {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another gateway uses it.
    #[error("another gateway uses {path}: stop it first, or name another state_dir")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifact cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The artifacts cannot be listed.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// Children cannot be served.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The parent cannot be spoken to.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Newcomers cannot be served.
    #[error(transparent)]
    Door(#[from] enrol::DoorError),
    /// The system gave no signal handler.
    #[error("cannot wait for SIGUSR1: {0}")]
    Signal(#[source] io::Error),
    /// The system has no randomness.
    #[error("the system's random generator does not work: nonces cannot be made")]
    Random,
    /// A name that is fixed in the program is not valid: a defect.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// Reads the identity and holds it against the configuration.
///
/// # Errors
/// [`WhoError`], which says what to correct.
pub fn who(config: &Config) -> Result<Who, WhoError> {
    agreed(config, config.identity.load()?)
}

/// As [`who`], for a gateway that starts: it enrols, and waits for its certificate, where it has none yet.
///
/// # Errors
/// [`WhoError`], which says what to correct.
pub async fn identify(config: &Config) -> Result<(Who, Option<Keeper>), WhoError> {
    let Identified { identity, keeper } = enrol::identify(Before {
        identity: &config.identity,
        enrolment: config.enrolment.as_ref(),
        parent: &config.parent.node,
        node: config.node.as_ref(),
        site: config.site.as_ref(),
        // Its children check its certificate.
        works_uncertified: false,
    })
    .await?;
    Ok((agreed(config, identity)?, keeper))
}

fn agreed(config: &Config, identity: Identity) -> Result<Who, WhoError> {
    let certified = identity.node().clone();
    if let Some(configured) = config.node.clone().filter(|n| *n != certified) {
        return Err(WhoError::Node { configured, certified });
    }
    if config.parent.node == certified {
        return Err(WhoError::OwnParent(certified));
    }
    let site = match (config.site.clone(), identity.site().cloned()) {
        (Some(configured), Some(certified)) if configured != certified => {
            return Err(WhoError::Site { configured, certified });
        }
        (Some(site), _) | (None, Some(site)) => site,
        (None, None) => return Err(WhoError::NoSite),
    };
    Ok(Who {
        identity: Arc::new(identity),
        site,
    })
}

/// A gateway, running as soon as its loop does.
pub struct Started {
    /// The loop.
    pub event_loop: EventLoop,
    /// What feeds it.
    pub sources: Sources,
    /// The children's endpoint.
    pub endpoint: AnyEndpoint,
    /// Held for as long as the process lives.
    pub lock: File,
}

/// Opens everything. Children can connect when this returns.
///
/// # Errors
/// [`StartError`], which says what to do.
pub async fn start(config: &Config, who: Who, keeper: Option<Keeper>) -> Result<Started, StartError> {
    let Who { identity, site } = who;
    let lock = prepare(&config.state_dir)?;
    let floor = Arc::new(FloorClock::of(&identity));
    let opened_ms = wall_ms().max(floor.now_s() * 1000);
    let Found { store, stored, alarm } = Store::open(&config.state_dir, config.limits.max_store_bytes, opened_ms)?;
    floor.raise(stored.time_floor);
    let artifacts = config.state_dir.join(ARTIFACTS);
    let (cache, cache_events) = Cache::open(&artifacts, config.limits.max_cache_bytes)?;
    let sealer = Sealer::new(identity.clone(), config.parent.node.clone())?;
    // The flashed bundle and what came since: nobody is let in by authorities that were replaced, not even at the start.
    let view = TrustState::restore(identity.trust().clone(), stored.trust.clone())
        .0
        .view();
    floor.raise(view.issued_at);
    let authorities = Arc::new(Authorities::of(&view.authorities)?);
    let (endpoint, down) = downstream::start(&config.children, &identity, &view.authorities).await?;
    let trust = Trust {
        door: endpoint.door(),
        parent: authorities.clone(),
    };
    trust.enforce(view);
    let (upstream, up) = Upstream::start(&identity, &config.parent, floor.clone(), authorities, sealer.clone())?;
    identity.endorse_in_time();
    let witness = identity.tpm().map(|_| {
        Arc::new(Witness {
            measurer: None,
            pcrs: config.attestation.pcrs.clone(),
        })
    });
    let core_config = core::Config {
        node: identity.node().clone(),
        site,
        parent: config.parent.node.clone(),
        labels: config.labels.clone(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        boot: boot_id(),
        trust: identity.trust().clone(),
        alarms: alarm.into_iter().collect(),
        key: identity.signer().public_key().clone(),
        renew_s: identity.renew_s(),
        parent_trust: config.attestation.parent,
        appraisal: appraisal(config)?,
    };
    let (installed_sender, installed) = mpsc::channel(1);
    if let Some(keeper) = keeper {
        tokio::spawn(keeper.run(identity.clone(), floor.clone(), installed_sender));
    }
    let (doorway, asked) = open_door(config, &identity).await?;
    let publisher = endpoint.publisher();
    let parts = Parts {
        config: core_config,
        identity,
        certificate: config.identity.certificate.clone(),
        doorway,
        sealer,
        floor,
        store,
        cache,
        upstream,
        publisher,
        trust,
        witness,
    };
    let event_loop = EventLoop::new(parts, stored)?;
    Ok(Started {
        event_loop,
        sources: Sources {
            up,
            installed,
            asked,
            down,
            cache: cache_events,
            demand: signal(SignalKind::user_defined1()).map_err(StartError::Signal)?,
        },
        endpoint,
        lock,
    })
}

fn appraisal(config: &Config) -> Result<core::Appraisal, StartError> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| StartError::Random)?;
    Ok(core::Appraisal {
        after_ms: config.attestation.hub_away_seconds.saturating_mul(1000),
        launch_pcr: config.attestation.launch_pcr,
        ..core::Appraisal::new(seed)
    })
}

/// The door for newcomers, where the configuration names one.
async fn open_door(
    config: &Config,
    identity: &Arc<Identity>,
) -> Result<(Doorway, mpsc::Receiver<enrol::Asked>), StartError> {
    let Some(listen) = config.enrolment.as_ref().and_then(|e| e.listen) else {
        return Ok((Doorway::default(), mpsc::channel(1).1));
    };
    let (door, asked) = Door::open(listen, identity.certified(), DoorLimits::default()).await?;
    tracing::info!(address = %door.address(), "newcomers can enrol");
    Ok((Doorway::new(door), asked))
}

/// Makes the state folder and takes its lock.
fn prepare(folder: &Path) -> Result<File, StartError> {
    let fail = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StartError::StateDir { action, path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(fail("create", folder))?;
    let path = folder.join(LOCK);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail("write", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::Locked { path }),
        Err(TryLockError::Error(source)) => Err(fail("lock", &path)(source)),
    }
}

/// Differs on every start, also when the clock does not: the hasher's keys are random.
fn boot_id() -> String {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), wall_ms());
    format!("{random:016x}")
}
