//! What a node keeps on its disk: one SQLite database with one writer, and a folder of artifacts named by their digest.
//!
//! - [`open`] opens, checks and migrates a database, and sets a corrupt cache aside;
//! - [`Owner`] is the one thread that holds its connection;
//! - [`Artifacts`] keeps artifacts and the partial files of those being fetched.
//!
//! Both count what they write, because flash wears out.

mod artifacts;
mod open;
mod owner;

pub use artifacts::{AppendError, ArtifactError, Artifacts, FinishError};
pub use open::{OnCorrupt, OpenError, Opened, SET_ASIDE_KEPT, Schema, SetAside, count_rows, open, set_aside};
pub use owner::{CallError, Counters, Owner};
