//! The simulated hub: its disk and the real core.

use cnova_hub_core::{Config, DelegationRules, Event, Hub, Stored};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::time::Now;
use cnova_shared::trust::TrustView;

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
        let stored = Stored {
            artifacts: super::manifests::artifacts(),
            ..Stored::default()
        };
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
