//! Desired against observed: the steps that are open.

use super::*;

impl Agent {
    /// Sets what the twin in force desires of every workload.
    pub(super) fn desire(&mut self, now: Now) {
        // Without a twin nothing is known, so nothing that runs is touched; the parent is asked for the twin.
        let Some(twin) = &self.twin else { return };
        let version = twin.version();
        let (salt, now_s) = (self.salt, self.now_s(now));
        let mut gone: BTreeSet<WorkloadId> = self.machines.keys().cloned().collect();
        for w in &twin.twin().workloads {
            gone.remove(&w.id);
            let machine = self
                .machines
                .entry(w.id.clone())
                .or_insert_with(|| Machine::new(w.id.clone(), salt, now_s));
            let spec = spec_digest(w);
            let same = |d: &&Desired| d.spec == spec && d.workload.app_generation == w.app_generation;
            let told = self.reporter.entry(&entry_key(&w.id)).and_then(|e| match &e.body {
                Body::Workload(r) if r.app_generation == w.app_generation && spec == machine.row().spec => {
                    Some(Version {
                        epoch: r.epoch,
                        generation: r.generation,
                    })
                }
                _ => None,
            });
            let asked_by = machine
                .desired()
                .filter(same)
                .map(|d| d.asked_by)
                .or(told)
                .unwrap_or(version);
            let desired = Desired {
                workload: w.clone(),
                spec,
                secrets: secrets_of(w, twin.twin()),
                asked_by,
            };
            machine.set_desired(Some(desired), now.mono_ms);
        }
        for id in gone {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.set_desired(None, now.mono_ms);
            }
        }
        self.want_artifacts();
    }

    pub(super) fn want_artifacts(&mut self) {
        let Some(twin) = &self.twin else { return };
        let returned = self
            .machines
            .values()
            .filter(|m| m.has_returned())
            .filter_map(Machine::target);
        let needed: BTreeMap<Digest, u64> = twin
            .twin()
            .workloads
            .iter()
            .chain(returned)
            .flat_map(v1::Workload::artifacts)
            .map(|a| (a.digest, a.size))
            .collect();
        let system = self.systems.fetched();
        self.fetches.retain(|d| needed.contains_key(d) || system == Some(*d));
        for (digest, size) in &needed {
            if !self.artifacts.contains(digest) {
                let have = self
                    .partial
                    .get(digest)
                    .copied()
                    .filter(|have| have <= size)
                    .unwrap_or(0);
                self.fetches.want(*digest, Some(*size), have);
            }
        }
    }

    pub(crate) fn missing(&self, machine: &Machine) -> Option<String> {
        let w = machine.target()?;
        let a = w.artifacts().find(|a| !self.artifacts.contains(&a.digest))?;
        Some(match self.fetches.problem(&a.digest) {
            Some(why) => format!("artifact {}: {why}", a.digest.short()),
            None => format!("artifact {} of {} bytes is being fetched", a.digest.short(), a.size),
        })
    }

    /// Why a secret of what is to run cannot be opened here.
    pub(crate) fn closed(&self, machine: &Machine) -> Option<String> {
        let target = machine.target()?;
        let sealed = machine.target_secrets();
        target.secrets.iter().find_map(|given| {
            let name = &given.name;
            let held = sealed.iter().find(|s| s.name == *name && s.version == given.version);
            match (held, &self.config.box_key) {
                (_, Err(why)) => Some(format!("secret {name} cannot be opened: {why}")),
                (None, Ok(_)) => Some(format!("secret {name} (version {}) is not in the twin", given.version)),
                (Some(held), Ok(own)) if held.key != own.id() => Some(format!(
                    "secret {name} is encrypted to an earlier key of this node: the hub sends it anew when it hears of \
                     this one"
                )),
                _ => None,
            }
        })
    }

    /// Whether a workload fits beside everything that may still be running.
    pub(crate) fn fits(&self, machine: &Machine) -> bool {
        let Some(w) = machine.target() else { return true };
        let (memory, cpu) = self
            .machines
            .values()
            .map(Machine::live_cost)
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let Decision::Run { leases, .. } = machine.decision() else {
            return true;
        };
        let leased = |lease: &String| self.machines.values().any(|m| m.live_leases().contains(lease));
        let have = &self.config.capabilities;
        memory + w.memory_bytes <= have.memory_bytes
            && cpu + w.cpu_millis <= have.cpu_millis
            && !leases.iter().any(leased)
    }

    /// Asks the scheduler what runs now.
    pub(super) fn schedule(&mut self, now: Now) {
        if self.twin.is_none() {
            return;
        }
        let wall_s = now.wall_ms / 1000;
        // A clock that is behind what was verified long ago is not set.
        let clock_s = (wall_s >= self.floor_s).then_some(wall_s);
        if let Some(now_s) = clock_s {
            self.machines.values_mut().for_each(|m| m.forget_future(now_s));
        }
        let trusted_s = self.now_s(now);
        let candidates: Vec<Candidate<'_>> = self
            .machines
            .values()
            .filter_map(|m| {
                let workload = m.target()?;
                let is_update = m.target_spec() != Some(m.row().spec);
                Some(Candidate {
                    workload,
                    bar: self.standing.bar(workload.trust, is_update, trusted_s),
                    is_update,
                    progress: m.progress(),
                    leases: m.live_leases(),
                    fired_s: m.row().fired_s,
                    pending: m.is_pending(),
                })
            })
            .collect();
        let node = schedule::Node {
            capabilities: &self.config.capabilities,
            power: self.power.0,
            power_why: &self.power.1,
            clock_s,
            mono_ms: now.mono_ms,
        };
        let decisions = self.scheduler.decide(&candidates, &node);
        for (id, decision) in decisions {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.decide(decision, now.mono_ms);
            }
        }
    }

    pub(super) fn step(&mut self, id: &WorkloadId, starts: bool, now: Now) {
        // Without a twin nothing is known to be unwanted: what was found running runs on until the parent has answered.
        if self.twin.is_none() {
            return;
        }
        let Some(machine) = self.machines.get(id) else { return };
        let here = self.lack(machine).is_none();
        let fits = self.fits(machine);
        let step = machine.step(here, fits);
        if starts != (step == Step::Start) {
            return;
        }
        match step {
            Step::None => {}
            Step::Remove => {
                self.machines.remove(id);
                self.ops.push(Op::DeleteInstance(id.clone()));
                self.say(&entry_key(id), now, Body::Gone { id: id.clone() });
                self.collect_garbage();
            }
            Step::Stop { attempt, grace_ms } => {
                if let Some(m) = self.machines.get_mut(id) {
                    m.stopping();
                }
                self.effects.push_back(Action::Stop {
                    id: id.clone(),
                    attempt,
                    grace_ms,
                });
            }
            Step::Start => self.start(id, now),
        }
    }

    pub(super) fn start(&mut self, id: &WorkloadId, now: Now) {
        let Some(machine) = self.machines.get_mut(id) else {
            return;
        };
        machine.starting(now.mono_ms);
        let (row, Some(target)) = (machine.row().clone(), machine.target()) else {
            return;
        };
        let launch = Launch {
            workload: target.clone(),
            secrets: machine.target_secrets().to_vec(),
            version: machine.target_version(),
            attempt: row.attempt,
            spec: row.spec,
            accelerators: row.leases.clone(),
        };
        self.ops.push(Op::PutInstance(row));
        self.effects.push_back(Action::Start(Box::new(launch)));
        self.collect_garbage();
    }

    /// Artifacts of the twin in force, and of the versions that may be returned to, stay; all others go.
    pub(super) fn collect_garbage(&mut self) {
        let Some(twin) = &self.twin else { return };
        let good = self
            .machines
            .values()
            .filter_map(|m| m.row().good.as_deref().map(|g| &g.workload));
        let keep: BTreeSet<Digest> = twin
            .twin()
            .workloads
            .iter()
            .chain(good)
            .flat_map(v1::Workload::artifacts)
            .map(|a| a.digest)
            .collect();
        let settled = self
            .machines
            .values()
            .all(|m| !m.is_live() || m.desired().is_some_and(|d| d.spec == m.row().spec));
        if settled && self.artifacts.iter().any(|d| !keep.contains(d)) {
            self.artifacts.retain(|d| keep.contains(d));
            self.effects
                .push_back(Action::KeepArtifacts(keep.into_iter().collect()));
        }
    }
}

/// The secrets of a twin that a workload uses.
fn secrets_of(w: &v1::Workload, twin: &v1::Twin) -> Vec<v1::SealedSecret> {
    let used = |s: &&v1::SealedSecret| w.secrets.iter().any(|u| u.name == s.name && u.version == s.version);
    twin.secrets.iter().filter(used).cloned().collect()
}
