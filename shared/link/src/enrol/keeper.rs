//! From nothing to an identity, and keeping it: a daemon's start, and what it does when its certificate has run out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cnova_root_of_trust::{RootError, RootOfTrust};
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::wire::v1::EnrolIssued;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Newcomer;
use crate::certified::{replace_file, store_issued};
use crate::config::{EnrolmentConfig, IdentityConfig};
use crate::identity::{Identity, IdentityError, NodeKey, read_trust};
use crate::tls::FloorClock;

/// Pause before a TPM that does not answer is opened again, where there is no certificate yet.
const TPM_AGAIN: Duration = Duration::from_secs(5);
/// Pause before a certificate that could not be written is written again.
const DISK_AGAIN: Duration = Duration::from_secs(10);
/// How often it is looked whether the certificate has run out.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const TRUST_MODE: u32 = 0o644;

/// What a daemon knows of itself before it has an identity.
#[derive(Clone, Copy, Debug)]
pub struct Before<'a> {
    /// Where key, certificate and trust are.
    pub identity: &'a IdentityConfig,
    /// How it enrols, if it does.
    pub enrolment: Option<&'a EnrolmentConfig>,
    /// The node above.
    pub parent: &'a NodeId,
    /// Its name, where the configuration says one.
    pub node: Option<&'a NodeId>,
    /// Its place, where the configuration says one.
    pub site: Option<&'a SitePath>,
    /// Whether it is of any use without a certificate, when name and place are known.
    pub works_uncertified: bool,
}

/// Who a daemon is, and what keeps it certified.
#[derive(Debug)]
pub struct Identified {
    /// It.
    pub identity: Identity,
    /// To be run beside the daemon, where it enrols.
    pub keeper: Option<Keeper>,
}

/// Reads or makes everything: the key, the trust, and the certificate, for which it enrols and waits where that is needed.
///
/// # Errors
/// [`IdentityError`] with the file and what to do. A hub that says no is waited for; so is a TPM that does not answer, where
/// there is no certificate yet. A node that has one begins without its TPM ([`cnova_root_of_trust::late`]).
pub async fn identify(before: Before<'_>) -> Result<Identified, IdentityError> {
    let config = before.identity;
    let Some(enrolment) = before.enrolment.filter(|e| !e.endpoints.is_empty()) else {
        let root = open_certified(config, false).await?;
        let identity = config.load_with(&root)?;
        return Ok(Identified { identity, keeper: None });
    };
    let trust = read_trust(&config.trust_bundle)?;
    let is_there = config.certificate.try_exists().unwrap_or(true);
    let root = match is_there {
        true => open_certified(config, true).await?,
        false => open_root(config).await?,
    };
    let clock = FloorClock::new(trust.contents().issued_at);
    let mut keeper = Keeper {
        newcomer: Newcomer {
            endpoints: enrolment.endpoints.clone(),
            server: enrolment.server.clone().unwrap_or_else(|| before.parent.clone()),
            name: before.node.cloned(),
            token_file: enrolment.token_file.clone(),
            trust: trust.clone(),
            clock: Arc::new(clock),
            root: root.clone(),
        },
        certificate: config.certificate.clone(),
        trust_bundle: config.trust_bundle.clone(),
    };
    let identity = match (is_there, before.node, before.site) {
        (true, _, _) => config.load_with(&root)?,
        (false, Some(node), Some(site)) if before.works_uncertified => {
            Identity::uncertified(node.clone(), site.clone(), NodeKey::of(&root), trust)
        }
        (false, _, _) => {
            tracing::info!(endpoints = ?enrolment.endpoints, "no certificate yet: enrolling");
            let issued = keeper.newcomer.until_issued().await;
            keeper.store(&issued).await;
            config.load_with(&root)?
        }
    };
    keeper.newcomer.name = Some(identity.node().clone());
    Ok(Identified {
        identity,
        keeper: Some(keeper),
    })
}

async fn open_certified(config: &IdentityConfig, make_key: bool) -> Result<Arc<dyn RootOfTrust>, IdentityError> {
    let wanted = config.clone();
    blocking(move || wanted.open_certified(make_key)).await
}

/// Opens what holds the key of a node without a certificate; waits for a TPM that does not answer.
async fn open_root(config: &IdentityConfig) -> Result<Arc<dyn RootOfTrust>, IdentityError> {
    let mut told = None;
    loop {
        let wanted = config.clone();
        match blocking(move || wanted.open_root(true)).await {
            Err(IdentityError::Root(error @ (RootError::NoAnswer { .. } | RootError::NoRoom { .. }))) => {
                if told.as_ref() != Some(&error) {
                    tracing::warn!(
                        %error,
                        retry_in_s = TPM_AGAIN.as_secs(),
                        "this node has no certificate yet, and cannot enrol before its TPM answers: waiting for it"
                    );
                    told = Some(error);
                }
                sleep(TPM_AGAIN).await;
            }
            opened => return opened,
        }
    }
}

async fn blocking(
    open: impl FnOnce() -> Result<Arc<dyn RootOfTrust>, IdentityError> + Send + 'static,
) -> Result<Arc<dyn RootOfTrust>, IdentityError> {
    let opened = tokio::task::spawn_blocking(open).await;
    opened.unwrap_or_else(|e| Err(RootError::File(e.to_string()).into()))
}

/// Has a node admitted anew when its certificate has run out, or is missing.
#[derive(Clone)]
pub struct Keeper {
    newcomer: Newcomer,
    certificate: PathBuf,
    trust_bundle: PathBuf,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keeper({})", self.certificate.display())
    }
}

impl Keeper {
    /// Runs for as long as the daemon does. Each certificate is on disk and in use when its renewal time is sent.
    pub async fn run(mut self, identity: Arc<Identity>, clock: Arc<FloorClock>, installed: mpsc::Sender<u64>) {
        self.newcomer.clock = clock.clone();
        loop {
            if is_good(&identity, &clock) {
                sleep(LOOK_EVERY).await;
                continue;
            }
            tracing::warn!(node = %identity.node(), "there is no certificate that is valid now: enrolling");
            let issued = tokio::select! {
                issued = self.newcomer.until_issued() => issued,
                // A clock that was set right, or a renewal that came after all.
                () = until_good(&identity, &clock) => continue,
            };
            self.store(&issued).await;
            match identity.install(&issued) {
                Ok(()) => drop(installed.send(issued.renew_s).await),
                Err(error) => tracing::error!(%error, "what was issued cannot be used"),
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Persists a newer trust bundle first, then the certificate; a full disk is waited for.
    async fn store(&self, issued: &EnrolIssued) {
        let trust = self.newcomer.newest_trust(issued);
        let is_newer = trust.contents().version > self.newcomer.trust.contents().version;
        loop {
            let (this, issued, bundle) = (self.clone(), issued.clone(), trust.bytes().to_vec());
            let write = move || {
                if is_newer {
                    replace_file(&this.trust_bundle, &bundle, TRUST_MODE)?;
                }
                store_issued(&this.certificate, &issued)
            };
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::error!(path = %self.certificate.display(), %error, "the certificate cannot be written");
                }
                Err(error) => tracing::error!(%error, "the certificate was not written"),
            }
            sleep(DISK_AGAIN).await;
        }
    }
}

fn is_good(identity: &Identity, clock: &FloorClock) -> bool {
    let ends = identity.certified().not_after_s();
    ends.is_some_and(|ends| clock.now_s() < ends)
}

async fn until_good(identity: &Identity, clock: &FloorClock) {
    while !is_good(identity, clock) {
        sleep(Duration::from_secs(1)).await;
    }
}
