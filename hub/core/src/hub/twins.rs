//! From applications and nodes to twins: placing anew, composing, having them signed.

use super::*;

impl Hub {
    pub(super) fn on_signed(&mut self, bytes: &[u8], now: Now) {
        let twin = match VerifiedTwin::open(bytes, self.trust.bundle(), now.wall_ms / 1000) {
            Ok(twin) => twin,
            Err(e) => return self.on_badly_signed(bytes, &e.to_string(), now),
        };
        let node = twin.twin().node.clone();
        if self.tree.desired(&node) == Some(twin.version()) {
            // The same twin by the new key; nothing about it has changed.
            self.tree.put_twin(&twin, now);
            return;
        }
        let apps = twin
            .twin()
            .workloads
            .iter()
            .map(|w| (w.id.application.clone(), w.app_generation));
        self.timeline.signed(&node, twin.version(), apps, now.wall_ms);
        self.note(format!("stage=signed node={node} twin={}", twin.version()));
        if self.signing.get(&node) == Some(&twin.version()) {
            self.signing.remove(&node);
        }
        self.tree.put_twin(&twin, now);
    }

    /// Signed with a key that has left the bundle meanwhile, it is signed again; otherwise when the node's twin changes.
    fn on_badly_signed(&mut self, bytes: &[u8], why: &str, now: Now) {
        self.note(format!(
            "the hub's own signer made a twin that nodes would refuse: {why}"
        ));
        let Ok((claims, kid)) = cnova_shared::envelope::peek(bytes) else {
            return;
        };
        self.signing.remove(&claims.aud);
        self.composed.remove(&claims.aud);
        if self.signer.is_some_and(|s| s != kid) {
            self.reconcile(now);
        }
    }

    /// What placement may know of the fleet. `apart_from` is the application that is being placed.
    pub(crate) fn node_views(&self, apart_from: Option<&Name>) -> Vec<NodeView> {
        let mut used: BTreeMap<&str, (NodeResources, Vec<String>)> = BTreeMap::new();
        for (_, app) in self.apps.iter().filter(|(n, _)| Some(*n) != apart_from) {
            for def in &app.placement.manifest().application().workloads {
                let Some(placed) = app.placement.workloads().get(&def.name) else {
                    continue;
                };
                for node in &placed.nodes {
                    let (u, promised) = used.entry(node).or_default();
                    u.memory_bytes += def.resources.memory_bytes.unwrap_or(0);
                    u.cpu_millis += def.resources.cpu_millis;
                    promised.extend(required_accelerators(def).map(str::to_owned));
                }
            }
        }
        let view = |(id, record): (&NodeId, &crate::inventory::NodeRecord)| {
            let hello = record.hello.as_ref()?;
            let caps = &hello.capabilities;
            let (used, promised) = used.get(id.as_str()).cloned().unwrap_or_default();
            Some(NodeView {
                id: id.to_string(),
                site: hello.site.to_string(),
                labels: hello.labels.clone(),
                runtimes: caps
                    .runtimes
                    .iter()
                    .map(|r| RuntimeView {
                        name: r.name.clone(),
                        targets: r.targets.clone(),
                    })
                    .collect(),
                capacity: Some(NodeResources {
                    memory_bytes: caps.memory_bytes,
                    cpu_millis: u32::try_from(caps.cpu_millis).unwrap_or(u32::MAX),
                }),
                used,
                accelerators: caps.accelerators.clone(),
                promised,
                devices: caps.devices.clone(),
                seen: true,
                revoked: self.why_revoked(id).is_some(),
                trust: self.standing(id),
                role: match hello.role {
                    v1::NodeRole::Agent => NodeRole::Agent,
                    v1::NodeRole::Gateway => NodeRole::Gateway,
                },
            })
        };
        self.inventory.nodes().iter().filter_map(view).collect()
    }

    /// Places everything anew where that changes something, and has the twins that differ signed.
    pub(super) fn reconcile(&mut self, now: Now) {
        self.count_systems();
        let names: Vec<Name> = self.apps.keys().cloned().collect();
        for name in &names {
            let views = self.node_views(Some(name));
            let Some(app) = self.apps.get_mut(name) else { continue };
            let was = app.placement.to_current();
            let placement = LabelsAndResources.place(app.placement.manifest(), &views, &was);
            let moved = placement.to_current() != was;
            app.placement = placement;
            if moved {
                let (generation, detail) = (app.generation, placed_on(&app.placement));
                self.persist_app(name);
                self.stage(name, generation, "placed", now.wall_ms, detail);
            }
        }
        let agents: Vec<NodeId> = self
            .inventory
            .nodes()
            .iter()
            .filter(|(_, r)| is_agent(r))
            .map(|(n, _)| n.clone())
            .collect();
        let mut problems: BTreeMap<Name, BTreeMap<String, String>> = BTreeMap::new();
        for node in agents {
            let mut composed = self.compose(&node);
            for key in composed.missing.clone() {
                self.compile(key);
            }
            for key in composed.uninspected.clone() {
                self.inspect(key);
            }
            let is_sealed = self.order_secrets(&node, &mut composed);
            self.keep_last_good(&node, &mut composed);
            for (id, why) in composed.problems {
                problems
                    .entry(id.application)
                    .or_default()
                    .insert(format!("{}@{node}", id.name), why);
            }
            if composed.missing.is_empty() && composed.uninspected.is_empty() && is_sealed {
                self.sign_if_new(node, composed.workloads);
            }
        }
        for (name, app) in &mut self.apps {
            app.problems = problems.remove(name).unwrap_or_default();
        }
    }

    /// What cannot be composed now stays as the node's last twin had it: a problem on the hub takes nothing down.
    fn keep_last_good(&self, node: &NodeId, composed: &mut Composed) {
        let before = self.composed.get(node).into_iter().flat_map(|made| &made.workloads);
        let kept = before.filter(|w| composed.problems.contains_key(&w.id)).cloned();
        composed.workloads.extend(kept.collect::<Vec<_>>());
        composed.workloads.sort_by(|a, b| a.id.cmp(&b.id));
    }

    pub(super) fn compose(&self, node: &NodeId) -> Composed {
        let Some(hello) = self.inventory.nodes().get(node).and_then(|r| r.hello.as_ref()) else {
            return Composed::default();
        };
        let apps: Vec<PlacedApp<'_>> = self
            .apps
            .iter()
            .map(|(name, a)| PlacedApp {
                name,
                generation: a.generation,
                placement: &a.placement,
            })
            .collect();
        rollout::compose(node.as_str(), &hello.capabilities, &apps, &self.artifact_view())
    }

    pub(super) fn sign_if_new(&mut self, node: NodeId, workloads: Vec<v1::Workload>) {
        let has = self.tree.reported(&node).unwrap_or_default();
        let desired = self
            .tree
            .desired(&node)
            .max(self.signing.get(&node).copied())
            .unwrap_or_default();
        let secrets = self.secrets_for(&node, &workloads);
        let system = self.system_for(&node);
        let made = Made {
            workloads,
            secrets,
            system,
        };
        let same = match self.composed.get(&node) {
            Some(before) => *before == made,
            None => made.workloads.is_empty() && made.system.is_none(),
        };
        // A node that is ahead of this hub (its store was restored from a backup, or lost) is overtaken.
        let behind = has > desired;
        if same && !behind {
            return;
        }
        if behind && has.epoch > self.epoch {
            self.set_epoch(has.epoch.saturating_add(1));
        }
        let newest = desired.max(has);
        let generation = if newest.epoch == self.epoch {
            newest.generation + 1
        } else {
            1
        };
        let version = Version {
            epoch: self.epoch,
            generation,
        };
        self.signing.insert(node.clone(), version);
        let twin = v1::Twin {
            v: v1::VERSION,
            node: node.clone(),
            epoch: version.epoch,
            generation,
            workloads: made.workloads.clone(),
            secrets: made.secrets.clone(),
            system: made.system.clone(),
        };
        let before = self.composed.insert(node.clone(), made).and_then(|m| m.system);
        self.count_asked(&node, before.as_deref(), twin.system.as_deref());
        self.forget_sealed(&node);
        self.effects.push_back(Action::SignTwin(Box::new(twin)));
    }
}
