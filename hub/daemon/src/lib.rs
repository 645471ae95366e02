//! The hub's program around its core: configuration, store, signer, API, and the loop that performs what the core
//! decides.
//!
//! ```text
//!  api ── requests ──┐                    ┌─ store (one transaction)
//!  broker ── events ─┼─> event_loop: Hub ─┼─> signer ─> broker
//!  compile ──────────┘                    └─ answers, compilations, chunks
//! ```

pub mod api;
pub mod bundle_file;
pub mod chunks;
pub mod clock;
pub mod compile;
pub mod config;
pub mod downstream;
pub mod event_loop;
pub mod inspect;
pub mod issuer;
pub mod library;
pub mod lock;
pub mod outgoing;
pub mod run;
pub mod signer;
pub mod stop;
pub mod store;
pub mod support;
pub mod tokens;
pub mod traffic;
pub mod vault;
