//! The gateway's decisions, without I/O: it keeps its descendants' twins, relays what they say, caches artifacts, and
//! answers its children while its own parent is away. Events in, actions out, time passed in.

pub mod api;
mod cache;
mod enrol;
mod gateway;
pub mod spool;

pub use api::{Action, Appraisal, Config, Event, Op, Stored, UpMessage};
pub use enrol::{ANSWER_WITHIN_MS, ASK_AGAIN_MS, DoorId, NEWCOMERS_WAITING};
pub use gateway::{ChildStanding, Gateway};
