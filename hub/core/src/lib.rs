//! The hub's decisions, without I/O: manifests become placements, placements become twins, reports become inventory.
//! Events in, actions out, time passed in.

pub mod api;
pub mod attestation_views;
pub mod cndl;
pub mod enrol;
pub mod explain;
mod hub;
pub mod inventory;
pub mod placement;
pub mod policy;
pub mod rollout;
pub mod secrets;
pub mod stored;
pub mod systems;
pub mod timeline;
pub mod views;
pub mod views_trust;

pub use api::{
    Action, Appraisal, AttestChange, CompileKey, Config, DelegationRules, Draft, Event, InspectKey, Inspection,
    Outcome, RequestId,
};
pub use hub::{Hub, ProvenanceFact, ProvenanceFacts};
pub use stored::{Op, Stored, StoredApp, StoredEntry, StoredProvenance};
