//! Putting the hub together, and taking it apart again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cnova_hub_core::enrol::EnrolRules;
use cnova_hub_core::policy::{PolicyError, PolicySet, PolicySource};
use cnova_hub_core::{Hub, Outcome};
use cnova_link::{Identity, IdentityError};
use cnova_provenance::AOT_BUILDER;
use cnova_shared::bundle::{TrustBundle, TrustedBuilder};
use cnova_shared::ids::{Digest, NodeId};
use cnova_store::OnCorrupt;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use crate::api::serve::{self, ListenError};
use crate::api::{self, Api, UPLOADS_AT_ONCE};
use crate::bundle_file;
use crate::clock::Clock;
use crate::compile::Compiler;
use crate::config::Config;
use crate::downstream::Downstream;
use crate::event_loop::{self, Change, Enrolling, EventLoop, HubHandle, LoopError, Parts};
use crate::issuer::{self, Issuer, IssuerError};
use crate::library::{Library, LibraryError};
use crate::lock::{StateFolder, StateFolderError};
use crate::signer::{Signer, SigningKeyError};
use crate::store::audit::Draft;
use crate::store::{Store, StoreError, back_up};
use crate::tokens::{Tokens, TokensError};
use crate::traffic::Traffic;
use crate::vault::Vault;

/// How often the database is copied.
const BACKUP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How often artifacts that nothing uses are looked for.
const LOOK_FOR_UNUSED_EVERY: Duration = Duration::from_secs(3600);
/// A certificate or key that ends within this is warned of.
const ENDS_SOON_S: u64 = 30 * 24 * 3600;
const REGO: &str = "rego";

/// Why the hub does not run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error(transparent)]
    StateFolder(#[from] StateFolderError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(
        "node: the configuration says {configured}, the certificate {certificate} says {named}: children look for the latter"
    )]
    OtherName {
        configured: NodeId,
        certificate: PathBuf,
        named: NodeId,
    },
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    #[error(transparent)]
    SigningKey(#[from] SigningKeyError),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error("cannot read the policies in {path}: {source}; check policy_dir")]
    PolicyFolder { path: PathBuf, source: io::Error },
    #[error("policy_dir {path}: {source}")]
    Policy { path: PathBuf, source: PolicyError },
    #[error("there is no compiler {path}: install cnova-aot beside cnova-hub, or set aot_worker")]
    NoWorker { path: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Loop(#[from] LoopError),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes, without which no node can be challenged")]
    Random,
}

/// What the configuration names, read and checked; nothing of it is changed.
pub struct Checked {
    /// Who the hub is.
    pub identity: Arc<Identity>,
    /// The newest trust bundle that it was given.
    pub trust: TrustBundle,
    /// Its voice.
    pub signer: Arc<Signer>,
    /// Who may use the API.
    pub tokens: Tokens,
    /// What may run.
    pub policy: PolicySet,
    /// Who certifies nodes, and by which rules.
    pub enrolment: Option<(Issuer, EnrolRules)>,
    /// The clocks.
    pub clock: Clock,
}

/// Reads everything that the configuration names.
///
/// # Errors
/// [`RunError`] for the first thing that is wrong, with what to do.
pub fn check(config: &Config) -> Result<Checked, RunError> {
    let identity = Arc::new(config.identity.load()?);
    if let Some(configured) = config.node.clone().filter(|n| n != identity.node()) {
        let (certificate, named) = (config.identity.certificate.clone(), identity.node().clone());
        return Err(RunError::OtherName {
            configured,
            certificate,
            named,
        });
    }
    let trust = bundle_file::newest(identity.trust(), &config.newest_bundle());
    let clock = Clock::new(identity.not_before_s().max(trust.contents().issued_at));
    let now_s = clock.now_s();
    let signer = Signer::load(&config.signing_keys, identity.node().clone(), &trust, now_s)?;
    let signer = signer.with_approvers(&config.boot_policy_keys);
    let enrolment = config
        .enrolment
        .as_ref()
        .map(|e| {
            let issuer = Issuer::load(e, &trust, now_s)?;
            let rules = issuer::rules(e, &issuer)?;
            Ok::<_, IssuerError>((issuer, rules))
        })
        .transpose()?;
    let tokens = Tokens::load(&config.tokens)?;
    let policy = load_policy(config.policy_dir.as_deref())?;
    if !config.aot_worker.is_file() {
        return Err(RunError::NoWorker {
            path: config.aot_worker.clone(),
        });
    }
    for warning in identity.warnings() {
        tracing::warn!("{warning}");
    }
    let builders = &trust.contents().builders;
    let compiles = |b: &TrustedBuilder| b.builder == AOT_BUILDER && b.key.id() == signer.kid() && now_s < b.not_after;
    if !builders.is_empty() && !builders.iter().any(compiles) {
        tracing::warn!(
            builder = AOT_BUILDER,
            kid = %signer.kid(),
            "the trust bundle does not name this hub's key as the compiler of Wasm: Wasm that must prove where it is from is \
             refused; have the roots sign one that does (cnova trust builder add DIR --hub-key --level 3)"
        );
    }
    for (what, end) in [
        ("certificate", identity.not_after_s()),
        ("signing key", signer.not_after()),
        (
            "issuing certificate",
            enrolment.as_ref().map_or(u64::MAX, |(i, _)| i.ends_s()),
        ),
    ] {
        if end < now_s + ENDS_SOON_S {
            tracing::warn!(
                not_after = end,
                days = end.saturating_sub(now_s) / 86_400,
                "the {what} ends soon"
            );
        }
    }
    if !config.api.ip().is_loopback() {
        tracing::warn!(address = %config.api, "the API is plain HTTP: put a TLS proxy before it, or tokens can be read on the way");
    }
    Ok(Checked {
        identity,
        trust,
        signer: Arc::new(signer),
        tokens,
        policy,
        enrolment,
        clock,
    })
}

fn load_policy(folder: Option<&Path>) -> Result<PolicySet, RunError> {
    let Some(folder) = folder else {
        let built_in = |source| RunError::Policy {
            path: PathBuf::from("(built in)"),
            source,
        };
        return PolicySet::builtin().map_err(built_in);
    };
    let path = || folder.to_owned();
    let unreadable = |source| RunError::PolicyFolder { path: path(), source };
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.extension().is_some_and(|e| e == REGO) {
            let text = fs::read_to_string(&file).map_err(unreadable)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sources.push(PolicySource { name, text });
        }
    }
    PolicySet::of_site(&sources).map_err(|source| RunError::Policy { path: path(), source })
}

fn open_store(config: &Config, set_aside_corrupt_store: bool) -> Result<Store, RunError> {
    let on_corrupt = if set_aside_corrupt_store {
        OnCorrupt::SetAside
    } else {
        OnCorrupt::Refuse
    };
    Ok(Store::open(
        &config.database(),
        &config.backups(),
        on_corrupt,
        config.limits.max_store_bytes,
    )?)
}

/// Runs the hub until it is told to stop.
///
/// # Errors
/// [`RunError`].
pub async fn run(config: Config, set_aside_corrupt_store: bool) -> Result<(), RunError> {
    let Checked {
        identity,
        trust,
        signer,
        tokens,
        policy,
        enrolment,
        clock,
    } = check(&config)?;
    // It holds keys, and for moments values of secrets: nothing of it belongs in a file.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a crash of the hub may leave its keys in a core file");
    }
    let (issuer, rules) = enrolment.unzip();
    let core_config = cnova_hub_core::Config {
        node: identity.node().clone(),
        trust,
        appraisal: config.attestation.to_core(random_seed()?),
        enrolment: rules,
        delegation: config.delegation.clone(),
    };
    let _folder = StateFolder::hold(&config.state_dir)?;
    let store = open_store(&config, set_aside_corrupt_store)?;
    let library = Arc::new(Library::open(&config.state_dir, config.limits.max_artifact_bytes)?);
    let listener = serve::listen(config.api).await?;
    let address = listener.local_addr().unwrap_or(config.api);
    let traffic = Arc::new(Traffic::default());
    let (hub, requests) = event_loop::channel();
    let compiler = Compiler::new(config.aot_worker.clone(), library.clone(), signer.clone(), clock);
    let vault = Arc::new(Vault::in_folder(&config.state_dir));
    let parts = Parts {
        config: core_config,
        newest_bundle: config.newest_bundle(),
        store: store.clone(),
        library: library.clone(),
        signer: signer.clone(),
        vault: vault.clone(),
        compiler: Arc::new(compiler),
        downstream: Downstream {
            children: config.children.clone(),
            identity: identity.clone(),
        },
        enrolment: issuer.map(|issuer| Enrolling {
            listen: config.enrolment.as_ref().and_then(|e| e.listen),
            issuer: Arc::new(issuer),
        }),
        traffic: traffic.clone(),
        clock,
    };
    let (stop, stopped) = watch::channel(false);
    let (ready, is_ready) = oneshot::channel();
    let event_loop = EventLoop::new(parts, requests).await?;
    let deciding = tokio::spawn(event_loop.run(ready, stopped.clone()));
    // The children's port may be taken: nothing is offered before both are there.
    if is_ready.await.is_err() {
        return ended(deciding.await);
    }
    check_audit(&store).await;
    let chores = chores(&config, &hub, &store, &library, clock);
    let api = Api {
        hub,
        store,
        library,
        tokens,
        policy,
        traffic,
        signer,
        vault,
        clock,
        node: identity.node().clone(),
        certificate_not_after_s: identity.not_after_s(),
        uploads: Semaphore::new(UPLOADS_AT_ONCE),
    };
    let serving = tokio::spawn(serve::serve(listener, api::router(Arc::new(api)), stopped));
    tracing::info!(node = %identity.node(), %address, version = env!("CARGO_PKG_VERSION"), "the hub is ready");
    let result = until_told(deciding, &stop).await;
    stop.send_replace(true);
    // It ends by itself, after a few seconds at most.
    let _ = serving.await;
    chores.iter().for_each(JoinHandle::abort);
    result
}

/// Runs until it is told to stop, or the loop ends by itself.
async fn until_told(
    mut deciding: JoinHandle<Result<(), LoopError>>,
    stop: &watch::Sender<bool>,
) -> Result<(), RunError> {
    tokio::select! {
        result = &mut deciding => ended(result),
        told = told_to_stop() => {
            told.map_err(RunError::Signals)?;
            tracing::info!("stopping");
            stop.send_replace(true);
            ended(deciding.await)
        }
    }
}

/// What is done now and then, beside everything else.
fn chores(
    config: &Config,
    hub: &HubHandle,
    store: &Store,
    library: &Arc<Library>,
    clock: Clock,
) -> [JoinHandle<()>; 3] {
    let keep = Duration::from_secs(config.limits.keep_unused_hours.saturating_mul(3600));
    let bundle = config.identity.trust_bundle.clone();
    [
        tokio::spawn(back_up_daily(store.clone(), clock)),
        tokio::spawn(read_bundle_again(hub.clone(), bundle, clock)),
        tokio::spawn(collect_unused(hub.clone(), library.clone(), keep)),
    ]
}

fn ended(result: Result<Result<(), LoopError>, tokio::task::JoinError>) -> Result<(), RunError> {
    match result {
        Ok(result) => Ok(result?),
        Err(died) => Err(LoopError::StoreFails(format!("the loop died: {died}")).into()),
    }
}

async fn told_to_stop() -> Result<(), io::Error> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// On SIGHUP the configured trust bundle is read again and, when it succeeds the one in force, rolled out.
async fn read_bundle_again(hub: HubHandle, file: PathBuf, clock: Clock) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        return tracing::error!("SIGHUP cannot be waited for: the trust bundle is read at the start only");
    };
    while hangup.recv().await.is_some() {
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "the trust bundle cannot be read");
                continue;
            }
        };
        let audit = Draft {
            at_ms: clock.now().wall_ms,
            user: "SIGHUP".to_owned(),
            action: "trust",
            object: format!("trust bundle {}", file.display()),
            outcome: "done",
            detail: String::new(),
        };
        match hub.change(Change::PushBundle(bytes), Some(audit)).await {
            Ok(Outcome::Trusted { text, .. }) => tracing::info!("{text}"),
            Ok(other) => tracing::error!(?other, "the trust bundle was not taken"),
            Err(error) => tracing::error!(%error, "the trust bundle was not taken"),
        }
    }
}

async fn check_audit(store: &Store) {
    match store.verify_audit().await {
        Ok(None) => {}
        Ok(Some(seq)) => tracing::error!(
            seq,
            "the audit log was changed: from this entry on its chain does not hold"
        ),
        Err(error) => tracing::error!(%error, "the audit log cannot be read"),
    }
}

/// Removes artifacts that were found unused at every look for so long. The time counts anew after a start of the hub.
async fn collect_unused(hub: HubHandle, library: Arc<Library>, keep: Duration) {
    if keep.is_zero() {
        return;
    }
    let mut since: BTreeMap<Digest, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_FOR_UNUSED_EVERY.min(keep)).await;
        // A hub that is busy is asked again at the next look.
        let Ok(unused) = hub.query(Hub::unused_artifacts).await else {
            continue;
        };
        let (now, promised) = (Instant::now(), library.take_promised());
        since.retain(|digest, _| unused.contains(digest) && !promised.contains(digest));
        for digest in unused {
            since.entry(digest).or_insert(now);
        }
        let due = since.iter().filter(|(_, at)| now.duration_since(**at) >= keep);
        let due: BTreeSet<Digest> = due.map(|(digest, _)| *digest).collect();
        if !due.is_empty() && hub.collect(due).is_err() {
            tracing::debug!("unused artifacts are removed later: the hub is busy");
        }
    }
}

async fn back_up_daily(store: Store, clock: Clock) {
    loop {
        let (database, folder) = (store.paths().0.to_owned(), store.paths().1.to_owned());
        let wall_ms = clock.now().wall_ms;
        match tokio::task::spawn_blocking(move || back_up(&database, &folder, wall_ms)).await {
            Ok(Ok(copy)) => tracing::info!(copy = %copy.display(), "the store is backed up"),
            Ok(Err(error)) => tracing::error!(%error, "no backup was made; it is tried again tomorrow"),
            Err(error) => tracing::error!(%error, "the backup died"),
        }
        tokio::time::sleep(BACKUP_EVERY).await;
    }
}

/// What nonces are made of, until the hub is started again.
fn random_seed() -> Result<[u8; 32], RunError> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| RunError::Random)?;
    Ok(seed)
}
