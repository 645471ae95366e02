//! The simulated hub: its disk and the real core.

use cnova_hub_core::{Config, Hub, Stored};
use cnova_shared::time::Now;
use cnova_shared::wire::v1;

use super::pki::{HUB, id, pki};

/// The simulated hub.
#[derive(Debug)]
pub struct SimHub {
    /// Its process, while it lives.
    pub core: Option<Hub>,
    /// How often it was started.
    pub life: u64,
    /// Its store.
    pub stored: Stored,
}

impl SimHub {
    /// A hub that has just been installed, with the artifacts that manifests of the simulator name.
    #[must_use]
    pub fn new() -> Self {
        let mut stored = Stored {
            artifacts: super::manifests::artifacts(),
            ..Stored::default()
        };
        for subject in super::manifests::attested() {
            let provenance = super::provenance::of_source(subject);
            let v1::Artifact { digest, size } = provenance.artifact;
            stored.artifacts.insert(digest, size);
            stored.provenance.insert(subject, vec![provenance]);
        }
        Self {
            core: None,
            life: 0,
            stored,
        }
    }

    /// Starts its process on what the disk holds.
    pub fn boot(&mut self, now: Now) {
        self.life += 1;
        let config = Config {
            node: id(HUB),
            trust: pki().trust.clone(),
            enrolment: None,
        };
        self.core = Some(Hub::boot(config, self.stored.clone(), now));
    }
}

impl Default for SimHub {
    fn default() -> Self {
        Self::new()
    }
}
