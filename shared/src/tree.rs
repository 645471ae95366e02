//! The part of a parent that hub and gateways share: who hangs below, what they said, which twin each should have.
//!
//! A [`Tree`] takes what children say, verifies every author's signature, accepts each stream in order and once, and
//! repeats twins until they are reported. It holds no spool and places nothing; its owner does.

mod children;
mod gather;
mod trust;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::certificate::{self, NodeCertificate};
use crate::envelope::{Untrusted, VerifiedBytes};
use crate::hop::{Admit, Position, admit};
use crate::ids::{Digest, HUB_AUDIENCE, NodeId, SitePath};
use crate::keys::{KeyId, PublicKey};
use crate::limits;
use crate::time::{Backoff, Now};
use crate::topics::Kind;
use crate::trust::TrustState;
use crate::twin::{VerifiedTwin, Version};
use crate::wire::v1::{self, Body, Stream};

/// A change that must be on disk before an acknowledgement or a twin goes out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TreeOp {
    /// A descendant said hello.
    PutDescendant {
        /// Which.
        node: NodeId,
        /// The direct child behind which it hangs; itself when it is one.
        via: NodeId,
        /// Its hello, as it came; it carries its certificate.
        hello: Vec<u8>,
    },
    /// The twin that a descendant should have, as the hub signed it.
    PutTwin {
        /// Which.
        node: NodeId,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// The twin that a descendant says it has.
    Reported {
        /// Which.
        node: NodeId,
        /// The twin's epoch, 0 for none.
        epoch: u64,
        /// The twin's generation, 0 for none.
        generation: u64,
        /// The twin's digest.
        digest: Option<Digest>,
    },
    /// A child's stream was taken up to here.
    Received {
        /// Which child.
        child: NodeId,
        /// Which stream.
        stream: Stream,
        /// How far.
        position: Position,
    },
}

/// A tree as its store holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredTree {
    /// Descendants: the child behind which they hang, and their hello.
    pub descendants: BTreeMap<NodeId, (NodeId, Vec<u8>)>,
    /// Twins.
    pub twins: BTreeMap<NodeId, Vec<u8>>,
    /// What descendants say they have: epoch, generation, digest.
    pub reported: BTreeMap<NodeId, (u64, u64, Option<Digest>)>,
    /// Streams.
    pub received: BTreeMap<(NodeId, Stream), Position>,
}

impl StoredTree {
    /// Applies a change to an image in memory.
    pub fn apply(&mut self, op: &TreeOp) {
        match op.clone() {
            TreeOp::PutDescendant { node, via, hello } => {
                self.descendants.insert(node, (via, hello));
            }
            TreeOp::PutTwin { node, bytes } => {
                self.twins.insert(node, bytes);
            }
            TreeOp::Reported {
                node,
                epoch,
                generation,
                digest,
            } => {
                self.reported.insert(node, (epoch, generation, digest));
            }
            TreeOp::Received {
                child,
                stream,
                position,
            } => {
                self.received.insert((child, stream), position);
            }
        }
    }
}

/// By what children's certificates are judged.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    /// Whom this node trusts.
    pub trust: &'a TrustState,
    /// Wall time in seconds, at least the newest time that was verified.
    pub now_s: u64,
    /// Monotonic milliseconds.
    pub mono_ms: u64,
}

/// What one author said, verified.
#[allow(
    clippy::large_enum_variant,
    reason = "one lives at a time and is taken apart at once"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Here I am.
    Hello(v1::Hello),
    /// This happened.
    Report(v1::Report),
    /// The answer to a command.
    Reply(v1::Reply),
    /// The answer to a challenge, not decoded yet.
    Evidence(VerifiedBytes),
}

/// What a tree's owner is to do, in order.
#[allow(
    clippy::large_enum_variant,
    reason = "one lives at a time and is taken apart at once"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum TreeEvent {
    /// Keep this.
    Persist(TreeOp),
    /// Somebody below said something new; `raw` are its signed bytes.
    Heard {
        /// The author.
        author: NodeId,
        /// What.
        said: Said,
        /// Its kind.
        kind: Kind,
        /// The signed bytes.
        raw: Vec<u8>,
    },
    /// Acknowledge to a child, after what came before is on disk.
    Ack {
        /// The child.
        child: NodeId,
        /// The acknowledgement.
        ack: v1::Ack,
        /// Whether it introduces this node with its certificate.
        introduce: bool,
    },
    /// A child wants a piece of an artifact.
    ChunkWanted {
        /// The child.
        child: NodeId,
        /// What it wants.
        request: v1::ChunkRequest,
    },
    /// A descendant asks for a certificate, for itself or for a newcomer at its door; `raw` are its signed bytes.
    Enrol {
        /// Who asks.
        author: NodeId,
        /// What.
        enrol: v1::Enrol,
        /// The signed bytes.
        raw: Vec<u8>,
    },
    /// Sign and send documents about trust to a child, introduced by this node's certificate: the child may not know the
    /// hub's newest key yet.
    Trust {
        /// The child.
        child: NodeId,
        /// The documents.
        trust: v1::Trust,
    },
    /// Send signed bytes to a child unchanged.
    Forward {
        /// The child.
        child: NodeId,
        /// The kind.
        kind: Kind,
        /// The node that they are for.
        node: NodeId,
        /// The version, when it is a twin's first way down.
        first: Option<Version>,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Something was not taken.
    Note(String),
}

#[derive(Clone, Debug)]
struct Wanted {
    version: Version,
    digest: Digest,
    kid: KeyId,
    /// Its key has left the trust bundle: nobody would take it any more.
    is_void: bool,
    bytes: Vec<u8>,
    forwarded: bool,
    resend_at: u64,
    backoff: Backoff,
}

#[derive(Clone, Debug)]
struct Descendant {
    via: NodeId,
    certificate: NodeCertificate,
    /// The key that it signs with: the certified one, or the session key that this one vouched for.
    key: PublicKey,
    hello: Vec<u8>,
    has: Option<(Version, Option<Digest>)>,
    /// It holds a twin whose key has left the trust bundle.
    renew: bool,
    site: SitePath,
    role: v1::NodeRole,
    trust_version: u64,
    documents: BTreeMap<String, u64>,
}

/// Everything below one parent.
#[derive(Clone, Debug)]
pub struct Tree {
    me: NodeId,
    descendants: BTreeMap<NodeId, Descendant>,
    twins: BTreeMap<NodeId, Wanted>,
    received: BTreeMap<(NodeId, Stream), Position>,
    connected: BTreeSet<NodeId>,
    gather: BTreeMap<NodeId, Gather>,
    /// Direct children that have not said that they hold the newest documents about trust.
    behind: BTreeMap<NodeId, trust::Behind>,
    /// Descendants that the hub has revoked.
    revoked: BTreeSet<NodeId>,
    events: VecDeque<TreeEvent>,
}

/// A child carried something that could not be judged (its author's hello never came, or was refused because a clock
/// was wrong): it is to tell everything again, less and less often.
#[derive(Clone, Copy, Debug)]
struct Gather {
    due: Option<u64>,
    pause_ms: u64,
}

impl Tree {
    /// A tree as its store holds it. What does not verify is left out and comes again.
    #[must_use]
    pub fn new(me: NodeId, stored: StoredTree, trust: &TrustState) -> Self {
        let mut tree = Self {
            me,
            descendants: BTreeMap::new(),
            twins: BTreeMap::new(),
            received: stored.received,
            connected: BTreeSet::new(),
            gather: BTreeMap::new(),
            behind: BTreeMap::new(),
            revoked: BTreeSet::new(),
            events: VecDeque::new(),
        };
        for (node, (via, hello)) in stored.descendants {
            // This node wrote these bytes after it had verified them; its certificate may have run out since.
            match reread(&hello) {
                Some((certificate, key, said)) if certificate.node == node => {
                    let has = stored.reported.get(&node).map(|(epoch, generation, digest)| {
                        let (epoch, generation) = (*epoch, *generation);
                        (Version { epoch, generation }, *digest)
                    });
                    let known = Descendant {
                        via,
                        certificate,
                        key,
                        hello,
                        has,
                        renew: said.renew,
                        site: said.site,
                        role: said.role,
                        trust_version: said.trust_version,
                        documents: said.documents,
                    };
                    tree.descendants.insert(node, known);
                }
                _ => tree.note(format!(
                    "the stored hello of {node} cannot be read; it will say hello again"
                )),
            }
        }
        for (node, bytes) in stored.twins {
            match trust.reopen_twin(&bytes) {
                Ok(twin) if twin.twin().node == node => tree.hold(&twin),
                Ok(_) => tree.note(format!("the stored twin of {node} names another node; it is left out")),
                Err(e) => tree.note(format!(
                    "the stored twin of {node} does not verify and is left out: {e}"
                )),
            }
        }
        tree.trust_changed(trust);
        tree
    }

    fn hold(&mut self, twin: &VerifiedTwin) {
        let wanted = Wanted {
            version: twin.version(),
            digest: twin.digest(),
            kid: twin.kid(),
            is_void: false,
            bytes: twin.bytes().to_vec(),
            forwarded: false,
            resend_at: 0,
            backoff: Backoff::default(),
        };
        self.twins.insert(twin.twin().node.clone(), wanted);
    }

    fn note(&mut self, text: String) {
        self.events.push_back(TreeEvent::Note(text));
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<TreeEvent> {
        self.events.pop_front()
    }

    /// The names of all descendants.
    pub fn descendants(&self) -> impl Iterator<Item = &NodeId> {
        self.descendants.keys()
    }

    /// A descendant's hello, as it came.
    #[must_use]
    pub fn hello_of(&self, node: &NodeId) -> Option<&[u8]> {
        self.descendants.get(node).map(|d| d.hello.as_slice())
    }

    /// What a descendant said when it last said hello.
    #[must_use]
    pub fn hello_said(&self, node: &NodeId) -> Option<v1::Hello> {
        Some(reread(&self.descendants.get(node)?.hello)?.2)
    }

    /// Acknowledges to a direct child once more what was acknowledged already: what else an acknowledgement tells is new.
    pub fn acknowledge_again(&mut self, child: &NodeId) {
        let is_asked_again = self.gather.get(child).is_some_and(|g| g.due.is_some());
        if self.connected.contains(child) && !is_asked_again {
            self.ack(child, Stream::Report, None);
        }
    }

    /// Direct children that are gateways.
    pub fn child_gateways(&self) -> impl Iterator<Item = &NodeId> {
        let is_one = |(n, d): &(&NodeId, &Descendant)| d.via == **n && d.role == v1::NodeRole::Gateway;
        self.descendants.iter().filter(is_one).map(|(n, _)| n)
    }

    /// A descendant's certificate, as its hello showed it.
    #[must_use]
    pub fn certificate(&self, node: &NodeId) -> Option<&NodeCertificate> {
        self.descendants.get(node).map(|d| &d.certificate)
    }

    /// The key that a descendant signs with: its session's, where it introduced one, or the certified one.
    #[must_use]
    pub fn session_key(&self, node: &NodeId) -> Option<&PublicKey> {
        self.descendants.get(node).map(|d| &d.key)
    }

    /// The direct child behind which `node` hangs.
    #[must_use]
    pub fn via(&self, node: &NodeId) -> Option<&NodeId> {
        self.descendants.get(node).map(|d| &d.via)
    }

    /// The version of the twin that `node` should have.
    #[must_use]
    pub fn desired(&self, node: &NodeId) -> Option<Version> {
        self.twins.get(node).map(|t| t.version)
    }

    /// The signed twin that `node` should have.
    #[must_use]
    pub fn twin_bytes(&self, node: &NodeId) -> Option<&[u8]> {
        self.twins.get(node).map(|t| t.bytes.as_slice())
    }

    /// The version that `node` last said it has. What it holds by a key that has left the trust bundle does not count:
    /// whoever stole that key may have signed any version.
    #[must_use]
    pub fn reported(&self, node: &NodeId) -> Option<Version> {
        let d = self.descendants.get(node).filter(|d| !d.renew)?;
        d.has.map(|(v, _)| v)
    }

    /// The nodes of twins that are held, each with the key that signed its twin.
    pub fn twin_keys(&self) -> impl Iterator<Item = (&NodeId, KeyId)> {
        self.twins.iter().map(|(n, t)| (n, t.kid))
    }

    /// Whether a direct child is connected.
    #[must_use]
    pub fn is_connected(&self, child: &NodeId) -> bool {
        self.connected.contains(child)
    }

    /// A child's transport is up. Nothing is sent until it says hello.
    pub fn child_connected(&mut self, child: &NodeId) {
        self.connected.insert(child.clone());
    }

    /// A child's transport is down.
    pub fn child_disconnected(&mut self, child: &NodeId) {
        self.connected.remove(child);
    }

    /// A newer twin for a node: keep it and send it when its way is known. Older and equal ones change nothing.
    pub fn put_twin(&mut self, twin: &VerifiedTwin, now: Now) -> bool {
        let node = twin.twin().node.clone();
        if let Some(held) = self.twins.get_mut(&node) {
            if held.version == twin.version() && held.digest == twin.digest() {
                held.resend_at = now.mono_ms;
                if held.kid == twin.kid() {
                    return false;
                }
                // The same twin, signed anew after a rotation.
                (held.kid, held.is_void, held.bytes) = (twin.kid(), false, twin.bytes().to_vec());
                self.events.push_back(TreeEvent::Persist(TreeOp::PutTwin {
                    node,
                    bytes: twin.bytes().to_vec(),
                }));
                return true;
            }
            if held.version >= twin.version() && !held.is_void {
                let text = format!("a twin {} for {node} came, {} is held", twin.version(), held.version);
                self.note(text);
                return false;
            }
        } else if self.twins.len() >= limits::DESCENDANTS {
            self.note(format!(
                "twin for {node} not kept: {} nodes already",
                limits::DESCENDANTS
            ));
            return false;
        }
        self.hold(twin);
        self.events.push_back(TreeEvent::Persist(TreeOp::PutTwin {
            node,
            bytes: twin.bytes().to_vec(),
        }));
        true
    }

    /// A child said something.
    pub fn on_message(&mut self, child: &NodeId, kind: Kind, bytes: &[u8], clock: &Clock<'_>) {
        // A message proves a connection, also where the broker does not tell (an external one).
        self.connected.insert(child.clone());
        let result = match kind {
            Kind::Hello => self.on_hello(child, child, bytes, clock),
            Kind::Report => self.on_report_stream(child, bytes),
            Kind::Relay => self.on_relay(child, bytes, clock),
            Kind::Reply => self.on_reply(child, bytes),
            Kind::Evidence => self.on_evidence(child, bytes),
            Kind::ChunkRequest => self.on_chunk_request(child, bytes),
            Kind::Enrol => self.on_enrol(child, bytes),
            other => Err(format!("a {} is not understood", other.as_str())),
        };
        if let Err(why) = result {
            self.note(format!("{} of {child} was not taken: {why}", kind.as_str()));
        }
    }

    fn ack(&mut self, child: &NodeId, stream: Stream, hello: Option<String>) {
        let held = self.received.get(&(child.clone(), stream)).copied().unwrap_or_default();
        let introduce = hello.is_some();
        let ack = v1::Ack {
            v: v1::VERSION,
            stream,
            incarnation: held.incarnation,
            seq: held.seq,
            hello,
            away_s: 0,
        };
        self.events.push_back(TreeEvent::Ack {
            child: child.clone(),
            ack,
            introduce,
        });
    }

    /// Sends the twins that are due to nodes whose way is known and that have not reported them.
    pub fn poll_twins(&mut self, now: Now) {
        self.poll_gather(now);
        for (node, twin) in &mut self.twins {
            let Some(d) = self.descendants.get(node) else { continue };
            let is_open = self.connected.contains(&d.via) && !self.revoked.contains(&d.via);
            if !is_due(d, twin) || !is_open || self.revoked.contains(node) || twin.resend_at > now.mono_ms {
                continue;
            }
            twin.resend_at = now.mono_ms + twin.backoff.next_pause();
            let first = (!twin.forwarded).then_some(twin.version);
            twin.forwarded = true;
            self.events.push_back(TreeEvent::Forward {
                child: d.via.clone(),
                kind: Kind::Twin,
                node: node.clone(),
                first,
                bytes: twin.bytes.clone(),
            });
        }
    }

    /// When [`Tree::poll_twins`] has something to send again, monotonic milliseconds.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        let due = self.twins.iter().filter_map(|(node, twin)| {
            let d = self.descendants.get(node)?;
            let is_open = self.connected.contains(&d.via) && !self.revoked.contains(&d.via);
            (is_due(d, twin) && is_open && !self.revoked.contains(node)).then_some(twin.resend_at)
        });
        let gather = self
            .gather
            .iter()
            .filter(|(c, _)| self.connected.contains(*c))
            .filter_map(|(_, g)| g.due);
        due.chain(gather).chain(self.trust_timeout()).min()
    }
}

/// A node's twin is due until the node has said hello and reported exactly it, or a newer one.
fn is_due(d: &Descendant, twin: &Wanted) -> bool {
    if twin.is_void {
        return false;
    }
    match d.has {
        Some(_) if d.renew => true,
        None => false,
        Some((version, digest)) => version < twin.version || (version == twin.version && digest != Some(twin.digest)),
    }
}

/// A hello that was verified when it came, without looking at the time.
fn reread(bytes: &[u8]) -> Option<(NodeCertificate, PublicKey, v1::Hello)> {
    let untrusted = Untrusted::read(bytes).ok()?;
    let certificate = certificate::read(untrusted.x5chain.first()?).ok()?;
    let key = untrusted.speaker(&certificate).ok()?;
    let verified = untrusted.verify(Kind::Hello, &key).ok()?;
    Some((certificate, key, verified.decode::<v1::Hello>().ok()?.into_value()))
}
