//! The simulated hub: its disk and the real core.

use cnova_hub_core::{Appraisal, Config, DelegationRules, Event, Hub, Stored};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::time::Now;
use cnova_shared::trust::TrustView;
use cnova_shared::wire::v1;

use super::pki::{HUB, LINE, id, pki};

/// The simulated hub.
#[derive(Debug)]
pub struct SimHub {
    /// Its process, while it lives.
    pub core: Option<Hub>,
    /// How often it was started.
    pub life: u64,
    /// Its store.
    pub stored: Stored,
    /// Whom its door lets in.
    pub view: TrustView,
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
            view: TrustView::default(),
        }
    }

    /// Starts its process on what the disk holds.
    pub fn boot(&mut self, now: Now) {
        self.life += 1;
        let config = Config {
            node: id(HUB),
            trust: pki().trust.clone(),
            enrolment: None,
            appraisal: Appraisal::new([u8::try_from(self.life % 256).unwrap_or_default(); 32]),
            delegation: DelegationRules {
                gateways: [id(LINE)].into(),
                ..DelegationRules::default()
            },
        };
        let mut core = Hub::boot(config, self.stored.clone(), now);
        let key = pki().hub_key(core.trust().version()).public_key().id();
        core.handle(Event::Signer(key), now);
        self.core = Some(core);
    }

    /// The key that it signs with.
    #[must_use]
    pub fn key(&self) -> &'static SoftKey {
        let version = self.core.as_ref().map_or(1, |c| c.trust().version());
        pki().hub_key(version)
    }
}

impl Default for SimHub {
    fn default() -> Self {
        Self::new()
    }
}
