//! Whether a twin that came is taken. Pure: bytes and what is held in, a verdict out.

use cnova_shared::bundle::TrustBundle;
use cnova_shared::envelope::EnvelopeError;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::twin::{TwinError, VerifiedTwin, Version};

/// A twin that was not taken, as it is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A stable word.
    pub code: &'static str,
    /// Why, for a person.
    pub detail: String,
    /// The version it carried, when its signature held.
    pub version: Version,
}

/// What becomes of a twin.
#[derive(Debug)]
pub enum Verdict {
    /// Newer than what is held.
    Take(Box<VerifiedTwin>),
    /// The one that is held.
    Held,
    /// The one that is held, signed anew: the key that signed it before has left the trust bundle.
    Renew(Box<VerifiedTwin>),
    /// Not taken; the last good one keeps running.
    Refuse(Refusal),
}

/// The twin in force, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its version.
    pub version: Version,
    /// Its digest.
    pub digest: Digest,
    /// Whether the key that signed it has left the trust bundle. Whoever stole that key may have given it any version: what
    /// a key of the bundle signed takes its place, whatever its version.
    pub is_void: bool,
}

/// Judges `bytes` for the node `me`, which holds `held` and takes nothing below `floor`, at `now_s`.
#[must_use]
pub fn judge(
    bytes: &[u8],
    me: &NodeId,
    trust: &TrustBundle,
    held: Option<Held>,
    floor: Version,
    now_s: u64,
) -> Verdict {
    let twin = match VerifiedTwin::open(bytes, trust, now_s) {
        Ok(twin) => twin,
        Err(e) => return refuse(&e, Version::default()),
    };
    let version = twin.version();
    if twin.twin().node != *me {
        let e = EnvelopeError::WrongAudience {
            aud: twin.twin().node.clone(),
            me: me.clone(),
        };
        return refuse(&TwinError::Envelope(e), version);
    }
    if version < floor {
        let detail = format!("the hub said after a roll-back of the disk that nothing below {floor} is to be taken");
        return Verdict::Refuse(Refusal {
            code: "rolled-back",
            detail,
            version,
        });
    }
    let Some(held) = held else {
        return Verdict::Take(Box::new(twin));
    };
    if held.is_void && version == held.version && twin.digest() == held.digest {
        return Verdict::Renew(Box::new(twin));
    }
    if version > held.version || held.is_void {
        return Verdict::Take(Box::new(twin));
    }
    #[cfg(feature = "planted-bugs")]
    if planted::takes_older_twins() {
        return Verdict::Take(Box::new(twin));
    }
    if version < held.version {
        let detail = format!("generation {version} is older than {}, which is in force", held.version);
        return Verdict::Refuse(Refusal {
            code: "old-generation",
            detail,
            version,
        });
    }
    if twin.digest() == held.digest {
        return Verdict::Held;
    }
    let detail = format!(
        "two different twins are signed as generation {version}: {} is in force, {} came; look at the hub's signing key",
        held.digest.short(),
        twin.digest().short()
    );
    Verdict::Refuse(Refusal {
        code: "same-generation",
        detail,
        version,
    })
}

fn refuse(e: &TwinError, version: Version) -> Verdict {
    Verdict::Refuse(Refusal {
        code: e.code(),
        detail: e.to_string(),
        version,
    })
}

/// Bugs that the simulator must find. They exist in test builds only and are off unless a test turns one on.
#[cfg(feature = "planted-bugs")]
pub mod planted {
    use std::cell::Cell;

    thread_local! {
        static TAKES_OLDER_TWINS: Cell<bool> = const { Cell::new(false) };
    }

    /// Makes this thread's agents take twins that are older than the one in force.
    pub fn take_older_twins(on: bool) {
        TAKES_OLDER_TWINS.set(on);
    }

    pub(super) fn takes_older_twins() -> bool {
        TAKES_OLDER_TWINS.get()
    }
}
