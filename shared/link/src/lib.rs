//! A node's side of MQTT: who it is, how it reaches its parent, and the pieces of configuration that say so.
//!
//! ```text
//!  Identity::load -> client_tls -> Uplink::start -> UplinkEvent::{Connected, Message, Disconnected}
//!        |                              ^
//!        +-- seal --------------------- send
//! ```
//!
//! Nothing here is durable and nothing is repeated: a message that could not be sent is dropped with an error, because
//! the cores say everything again until their parent has acknowledged it.

mod address;
mod certified;
pub mod config;
pub mod enrol;
mod identity;
mod reason;
mod session;
pub mod support;
mod tls;
mod uplink;
mod witness;

pub use address::{Address, InvalidAddress};
pub use certified::{Certified, replace_file, store_issued};
pub use identity::{Identity, IdentityError, NodeKey, read_trust};
pub use tls::{Authorities, FloorClock, TlsError, client_tls, client_tls_with};
pub use uplink::{SendError, Uplink, UplinkConfig, UplinkEvent};
pub use witness::{AttestError, Witness};
