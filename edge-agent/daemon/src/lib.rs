//! The agent's daemon: performs what the core decides.
//!
//! ```text
//!  uplink events --+                 +--> ledger (SQLite, one transaction per Persist)
//!  runtime events -+-> event_loop ---+--> signed messages to the parent
//!  artifacts ------+    (core)       +--> supervisor: one task per instance, pidfd, control group, RAL, health
//!  sensors --------+                 +--> artifacts on disk
//!  timer, signals -+
//! ```
//!
//! A library only so that its parts can be tested; the program is `cnova-agent`.

mod answers;
mod box_key;
mod catalog;
pub mod check;
pub mod config;
mod event_loop;
mod folders;
mod groups;
mod hardware;
mod health;
pub mod instance;
mod key_keeper;
mod launch;
pub mod ledger;
mod observe;
mod proof;
pub mod run;
mod sensors;
pub mod status;
mod supervisor;
pub mod support;
mod trusted;
