//! A simulated gateway: its disk and the real core.

use std::collections::BTreeMap;

use cnova_attestation::parent::ParentTrust;
use cnova_gateway_core::{Appraisal, Config, Gateway, Stored};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::time::Now;
use cnova_shared::trust::TrustView;
use cnova_shared::wire::v1;

use super::pki::{pki, site};

/// A simulated gateway.
#[derive(Debug)]
pub struct SimGateway {
    /// Its name.
    pub node: NodeId,
    /// The node above it.
    pub parent: NodeId,
    /// Its process, while it lives.
    pub core: Option<Gateway>,
    /// How often it was started.
    pub life: u64,
    /// Its store.
    pub stored: Stored,
    /// Whole artifacts in its cache.
    pub artifacts: BTreeMap<Digest, u64>,
    /// Partial files.
    pub partial: BTreeMap<Digest, u64>,
    /// How wrong its wall clock is, seconds.
    pub clock_off_s: i64,
    /// Whom its door lets in.
    pub view: TrustView,
}

impl SimGateway {
    /// A gateway that has just been installed.
    #[must_use]
    pub fn new(node: NodeId, parent: NodeId) -> Self {
        let mut gateway = Self {
            node,
            parent,
            core: None,
            life: 0,
            stored: Stored::default(),
            artifacts: BTreeMap::new(),
            partial: BTreeMap::new(),
            clock_off_s: 0,
            view: TrustView::default(),
        };
        gateway.lose_store(1);
        gateway
    }

    /// The store is lost.
    pub fn lose_store(&mut self, incarnation: u64) {
        self.stored = Stored::default();
        self.stored.stream.acked.incarnation = incarnation;
        self.stored.spool.acked.incarnation = incarnation;
        self.artifacts.clear();
        self.partial.clear();
    }

    /// Starts its process on what the disk holds.
    pub fn boot(&mut self, now: Now, alarms: Vec<v1::Alarm>) {
        self.life += 1;
        let config = Config {
            node: self.node.clone(),
            site: site(self.node.as_str()),
            parent: self.parent.clone(),
            labels: BTreeMap::new(),
            software: "sim".into(),
            boot: format!("{}-{}", self.node, self.life),
            trust: pki().trust.clone(),
            alarms,
            // Nobody's certificate ends in the simulated hours.
            key: cnova_shared::keys::Signer::public_key(&pki().nodes[&self.node].key).clone(),
            renew_s: None,
            parent_trust: ParentTrust::Certified,
            appraisal: Appraisal::new(Digest::of(format!("{} {}", self.node, self.life).as_bytes()).0),
        };
        let (artifacts, partial) = (self.artifacts.clone(), self.partial.clone());
        self.core = Some(Gateway::boot(config, self.stored.clone(), artifacts, partial, now));
    }
}
