//! The gateway: a tree below, a parent above, a spool and a cache between.

mod trust;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cnova_attestation::parent::stands_alone;
use cnova_attestation::result::Results;
use cnova_shared::envelope::Untrusted;
use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::parent::{Parent, ParentError};
use cnova_shared::renewal::Renewal;
use cnova_shared::report::{Reporter, StreamOp};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::tree::{Clock, Said, Tree, TreeEvent};
use cnova_shared::trust::TrustState;
use cnova_shared::twin::{VerifiedTwin, Version};
use cnova_shared::wire::v1::{self, Body, Stream};

use crate::api::{Action, Config, Event, Op, Stored, UpMessage};
use crate::cache::Cache;
use crate::enrol::Newcomers;
use crate::spool::{Item, Spool, SpoolOp};

mod attestation;
mod certificates;
mod parent;
mod verifier;

use certificates::first_ticket;
pub use verifier::ChildStanding;
use verifier::Verifier;

/// One gateway.
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    trust: TrustState,
    tree: Tree,
    spool: Spool,
    cache: Cache,
    reporter: Reporter,
    parent: Parent,
    newcomers: Newcomers,
    renewal: Renewal,
    welcomed: BTreeSet<Stream>,
    /// The newest results about this gateway.
    own: Results,
    /// The newest results about the parent.
    above: Results,
    verifier: Verifier,
    floor_s: u64,
    replies: u64,
    ops: Vec<Op>,
    stream_ops: Vec<StreamOp>,
    spool_ops: Vec<SpoolOp>,
    effects: VecDeque<Action>,
    actions: VecDeque<Action>,
}

impl Gateway {
    /// Starts from what the store and the artifact cache hold (whole ones and partial files, with sizes).
    #[must_use]
    pub fn boot(
        config: Config,
        stored: Stored,
        artifacts: BTreeMap<Digest, u64>,
        partial: BTreeMap<Digest, u64>,
        now: Now,
    ) -> Self {
        let (trust, faults) = TrustState::restore(config.trust.clone(), stored.trust);
        let issued_at = trust.bundle().contents().issued_at;
        let mut gateway = Self {
            tree: Tree::new(config.node.clone(), stored.tree, &trust),
            trust,
            spool: Spool::new(stored.spool),
            cache: Cache::new(artifacts, partial),
            reporter: Reporter::new(stored.stream),
            parent: Parent::new(config.parent.clone()),
            newcomers: Newcomers::new(config.node.clone(), first_ticket(&config.boot)),
            renewal: Renewal::new(config.key.clone(), config.renew_s, !first_ticket(&config.boot)),
            welcomed: BTreeSet::new(),
            floor_s: stored.time_floor.max(issued_at),
            own: Results::default(),
            above: Results::default(),
            verifier: Verifier::new(&config, stored.verdicts, now),
            replies: 0,
            ops: Vec::new(),
            stream_ops: Vec::new(),
            spool_ops: Vec::new(),
            effects: VecDeque::new(),
            actions: VecDeque::new(),
            config,
        };
        for alarm in gateway.config.alarms.clone() {
            gateway.say(&format!("alarm/{}", alarm.code), Body::Alarm(alarm), now);
        }
        gateway.begin_trust(&faults, now);
        let (own, above) = ([stored.ear, stored.delegated_ear], stored.parent_ears);
        gateway.reopen_results(own, above, stored.results, now);
        // An alarm of an earlier start that this start did not raise is over.
        let stands = |key: &String| {
            gateway
                .config
                .alarms
                .iter()
                .any(|a| *key == format!("alarm/{}", a.code))
                || (key == trust::STORED_ALARM && !faults.is_empty())
                || trust::is_watched(key)
        };
        let over: Vec<String> = gateway.reporter.alarms().into_iter().filter(|k| !stands(k)).collect();
        for key in over {
            gateway.say(&key, Body::Over, now);
        }
        gateway.settle(now);
        gateway
    }

    /// This node's name.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.config.node
    }

    /// What hangs below.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// How many messages wait for the parent.
    #[must_use]
    pub fn spooled(&self) -> usize {
        self.spool.len()
    }

    /// Wall time in seconds, at least the newest time that was verified.
    #[must_use]
    pub fn now_s(&self, now: Now) -> u64 {
        now.wall_s_at_least(self.floor_s)
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::ParentConnected => {
                self.parent.connected(now.mono_ms);
                self.renewal.connected(now.mono_ms);
                self.welcomed.clear();
                self.cache.reconnected();
            }
            Event::ParentDisconnected => {
                self.parent.disconnected();
                self.reporter.set_connected(false);
                self.spool.set_connected(false);
                self.hub_is_away(now);
            }
            Event::FromParent { kind, bytes } => self.on_parent(kind, &bytes, now),
            Event::ChildConnected(child) => {
                self.tree.child_connected(&child);
                self.link(&child, true, String::new(), now);
            }
            Event::ChildDisconnected { child, reason } => {
                self.tree.child_disconnected(&child);
                self.link(&child, false, reason, now);
            }
            Event::FromChild { child, kind, bytes } => {
                let clock = Clock {
                    trust: &self.trust,
                    now_s: now.wall_s_at_least(self.floor_s),
                    mono_ms: now.mono_ms,
                };
                self.tree.on_message(&child, kind, &bytes, &clock);
            }
            Event::ArtifactStored { digest, size } => {
                let actions = self.cache.stored(digest, size);
                self.effects.extend(actions);
            }
            Event::ArtifactFailed { digest, detail } => {
                self.cache.failed(&digest, &detail, now.mono_ms);
                self.note(format!("artifact {}: {detail}", digest.short()));
            }
            Event::Newcomer { door, step } => self.on_newcomer(door, step, now),
            Event::NewcomerGone(door) => self.newcomers.gone(door),
            Event::Installed { renew_s } => {
                self.renewal.installed(Some(renew_s), now.mono_ms);
                self.parent.changed(now.mono_ms);
            }
            Event::EarSigned { node, bytes } => self.on_ear_signed(&node, &bytes, now),
            Event::Demand => self.demand(now),
            Event::Trouble(alarm) => self.say(&format!("alarm/{}", alarm.code), Body::Alarm(alarm), now),
            Event::Tick => {}
        }
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, monotonic milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let up = self.parent.is_connected();
        let above = [
            self.cache.timeout(),
            self.reporter.timeout(),
            self.spool.timeout(),
            self.parent.timeout(),
            self.renewal.timeout(),
        ];
        above
            .into_iter()
            .flatten()
            .filter(|_| up)
            .chain(self.tree.timeout())
            .chain(self.verifier_timeout())
            .chain(self.newcomers.timeout(up))
            .min()
    }

    fn link(&mut self, child: &NodeId, up: bool, reason: String, now: Now) {
        let reason = cnova_shared::limits::clip_to(&reason, 200);
        self.say(
            &format!("link/{child}"),
            Body::Link {
                child: child.clone(),
                up,
                reason,
            },
            now,
        );
    }

    fn on_parent(&mut self, kind: Kind, bytes: &[u8], now: Now) {
        if kind != Kind::Trust
            && let Some(why) = self.parent.revoked(&self.trust)
        {
            return self.note(format!("{} from the parent was not taken: {why}", kind.as_str()));
        }
        if !stands_alone(kind)
            && let Some(why) = self.doubt_about_parent(now)
        {
            return self.note(format!("{} from the parent was not taken: {why}", kind.as_str()));
        }
        let result = match kind {
            Kind::Ack => self.on_ack(bytes, now),
            Kind::Twin => self.on_twin(bytes, now),
            Kind::Chunk => self.on_chunk(bytes, now),
            Kind::Command => self.hand_down(Kind::Command, bytes),
            Kind::Enrolled => self.on_enrolled(bytes, now),
            Kind::Trust => self.on_trust(bytes, now),
            Kind::Challenge => self.on_challenge(bytes, now),
            Kind::Ear => self.on_ear(bytes, now),
            other => Err(format!("a {} is not understood", other.as_str())),
        };
        if let Err(why) = result {
            self.note(format!("{} from the parent was not taken: {why}", kind.as_str()));
        }
    }

    fn open<T: serde::de::DeserializeOwned + v1::Versioned>(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        now: Now,
    ) -> Result<T, String> {
        let now_s = self.now_s(now);
        let opened = self.parent.open(kind, bytes, &self.config.node, &self.trust, now_s);
        let message = opened
            .and_then(|v| v.decode::<T>().map_err(ParentError::from))
            .map_err(|e| e.to_string())?;
        // The parent's clock may be decades off: only twins, which the hub signed, move the time floor.
        Ok(message.into_value())
    }

    fn raise_floor(&mut self, iat: u64) {
        const WRITE_EVERY_S: u64 = 3600;
        if iat > self.floor_s {
            if iat - self.floor_s >= WRITE_EVERY_S {
                self.ops.push(Op::TimeFloor(iat));
            }
            self.floor_s = iat;
        }
    }

    fn on_ack(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let ack = self.open::<v1::Ack>(Kind::Ack, bytes, now)?;
        let position = Position {
            incarnation: ack.incarnation,
            seq: ack.seq,
        };
        self.hub_was_reached(ack.away_s, now);
        let welcome = ack.hello.as_ref() == Some(&self.config.boot);
        if welcome {
            // One answer of the two may be lost; the hello is repeated until both streams were answered.
            self.welcomed.insert(ack.stream);
            if self.welcomed.len() == 2 {
                self.parent.welcomed();
            }
        }
        match ack.stream {
            Stream::Report => {
                self.reporter
                    .on_ack(position, welcome, now.mono_ms, &mut self.stream_ops);
                if welcome {
                    self.reporter.set_connected(true);
                }
            }
            Stream::Relay => {
                if self.spool.on_ack(position, welcome, now.mono_ms, &mut self.spool_ops) {
                    self.gather_again();
                }
                if welcome {
                    self.spool.set_connected(true);
                }
            }
        }
        Ok(())
    }

    /// The parent lost its store: who hangs here and what they last said goes up once more.
    fn gather_again(&mut self) {
        let hellos: Vec<(NodeId, Vec<u8>)> = self
            .tree
            .descendants()
            .filter_map(|n| self.tree.hello_of(n).map(|h| (n.clone(), h.to_vec())))
            .collect();
        for (node, bytes) in hellos {
            self.spool(node, Kind::Hello, BTreeSet::from(["hello".to_owned()]), bytes);
        }
        self.tree.forget_received();
        self.note("the parent began anew: everything below is gathered again".into());
    }

    fn on_twin(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let twin = VerifiedTwin::open(bytes, self.trust.bundle(), self.now_s(now)).map_err(|e| e.to_string())?;
        if twin.twin().node == self.config.node {
            return Err("gateways run no workloads of their own; run an agent beside it".into());
        }
        self.raise_floor(twin.iat());
        self.tree.put_twin(&twin, now);
        Ok(())
    }

    fn on_chunk(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let chunk = self.open::<v1::Chunk>(Kind::Chunk, bytes, now)?;
        let actions = self.cache.on_chunk(chunk);
        self.effects.extend(actions);
        Ok(())
    }

    /// Commands, challenges and answers are handed on at once or not at all; the node checks the hub's signature itself.
    fn hand_down(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), String> {
        let node = Untrusted::read(bytes).map_err(|e| e.to_string())?.claims.aud;
        let via = self
            .tree
            .via(&node)
            .ok_or_else(|| format!("{node} does not hang here"))?;
        if !self.tree.is_connected(via) {
            return Err(format!("{via}, on the way to {node}, is not connected"));
        }
        let action = Action::Forward {
            child: via.clone(),
            kind,
            bytes: bytes.to_vec(),
        };
        self.effects.push_back(action);
        Ok(())
    }

    fn spool(&mut self, node: NodeId, kind: Kind, keys: BTreeSet<String>, bytes: Vec<u8>) {
        let item = Item {
            node,
            kind: kind.as_str().to_owned(),
            keys,
            bytes,
        };
        self.spool.push(item, &mut self.spool_ops);
    }

    fn drain_tree(&mut self, now: Now) {
        while let Some(event) = self.tree.poll_event() {
            match event {
                TreeEvent::Persist(op) => self.ops.push(Op::Tree(op)),
                TreeEvent::Heard {
                    author,
                    said,
                    kind,
                    raw,
                } => {
                    if matches!(said, Said::Hello(_)) && self.tree.is_connected(&author) {
                        self.show_ear(&author, now);
                        self.greet(&author, now);
                    }
                    if let Said::Evidence(evidence) = &said
                        && self.on_evidence(&author, evidence, now)
                    {
                        continue;
                    }
                    let keys = self.keys_of(&said);
                    self.spool(author, kind, keys, raw);
                }
                TreeEvent::Ack {
                    child,
                    mut ack,
                    introduce,
                } => {
                    ack.away_s = self.away_s_for(&child, now);
                    self.effects.push_back(Action::Ack { child, ack, introduce });
                }
                TreeEvent::ChunkWanted { child, request } => {
                    let action = self.cache.wanted(child, &request);
                    self.effects.extend(action);
                }
                TreeEvent::Forward {
                    child,
                    kind,
                    node,
                    first,
                    bytes,
                } => {
                    if let Some(Version { epoch, generation }) = first {
                        let body = Body::Relayed {
                            node: node.clone(),
                            epoch,
                            generation,
                        };
                        self.say(&format!("relayed/{node}"), body, now);
                    }
                    self.effects.push_back(Action::Forward { child, kind, bytes });
                }
                TreeEvent::Enrol { author, raw, .. } => self.carry_enrol(&author, raw),
                TreeEvent::Trust { child, trust } => self.effects.push_back(Action::Trust { child, trust }),
                TreeEvent::Note(text) => self.note(text),
            }
        }
    }

    fn keys_of(&mut self, said: &Said) -> BTreeSet<String> {
        match said {
            Said::Hello(_) => BTreeSet::from(["hello".to_owned()]),
            // A report that tells all keys is only made needless by another one that does.
            Said::Report(r) => {
                let all = r.all_keys.as_ref().map(|_| "all".to_owned());
                r.entries.iter().map(|e| e.key.clone()).chain(all).collect()
            }
            Said::Reply(_) => {
                self.replies += 1;
                BTreeSet::from([format!("reply/{}/{}", self.config.boot, self.replies)])
            }
            // Only the newest answers the newest challenge.
            Said::Evidence(_) => BTreeSet::from(["evidence".to_owned()]),
        }
    }

    /// Puts what is to be kept before what is to be done, and what is due for the parent behind everything else.
    fn settle(&mut self, now: Now) {
        self.watch_trust(now);
        self.watch_hub(now);
        // What a twin was signed with goes before the twin.
        self.tree.poll_trust(&self.trust, now);
        self.tree.poll_twins(now);
        self.drain_tree(now);
        self.challenge(now);
        self.speak(now);
        self.ops.extend(self.stream_ops.drain(..).map(Op::Stream));
        self.ops.extend(self.spool_ops.drain(..).map(Op::Spool));
        if !self.ops.is_empty() {
            self.actions.push_back(Action::Persist(std::mem::take(&mut self.ops)));
        }
        self.actions.append(&mut self.effects);
    }

    fn speak(&mut self, now: Now) {
        self.ask_for_newcomers(now);
        if !self.parent.is_connected() {
            return;
        }
        if self.parent.poll_hello(now.mono_ms) {
            let hello = self.hello();
            self.effects.push_back(Action::SendUp(UpMessage::Hello(hello)));
        }
        if let Some(enrol) = self.renewal.poll(self.now_s(now), now.mono_ms) {
            self.effects.push_back(Action::SendUp(UpMessage::Enrol(enrol)));
        }
        while let Some(want) = self.cache.poll(now.mono_ms) {
            let request = v1::ChunkRequest {
                v: v1::VERSION,
                digest: want.digest,
                offset: want.offset,
                length: want.length,
                base: None,
            };
            self.effects.push_back(Action::SendUp(UpMessage::ChunkRequest(request)));
        }
        self.reporter.on_timeout(now.mono_ms);
        self.spool.on_timeout(now.mono_ms);
        while let Some(relay) = self.spool.poll(now.mono_ms) {
            self.effects.push_back(Action::SendUp(UpMessage::Relay(relay)));
        }
        while let Some(report) = self.reporter.poll(now.mono_ms) {
            self.effects.push_back(Action::SendUp(UpMessage::Report(report)));
        }
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            v: v1::VERSION,
            boot: self.config.boot.clone(),
            epoch: 0,
            generation: 0,
            digest: None,
            incarnation: self.reporter.incarnation(),
            role: v1::NodeRole::Gateway,
            site: self.config.site.clone(),
            labels: self.config.labels.clone(),
            capabilities: v1::Capabilities::default(),
            software: self.config.software.clone(),
            trust_version: self.trust.version(),
            documents: self.trust.documents(),
            renew: false,
            box_key: None,
            alarms: self.config.alarms.clone(),
        }
    }

    fn say(&mut self, key: &str, body: Body, now: Now) {
        self.reporter.say(key, now.wall_ms, body, &mut self.stream_ops);
    }

    fn note(&mut self, text: String) {
        self.effects.push_back(Action::Note(text));
    }
}
