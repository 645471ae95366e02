//! Desired against observed: the steps that are open.

use super::*;

impl Agent {
    /// Sets what the twin in force desires of every workload.
    pub(super) fn desire(&mut self, now: Now) {
        // Without a twin nothing is known, so nothing that runs is touched; the parent is asked for the twin.
        let Some(twin) = &self.twin else { return };
        let version = twin.version();
        let decisions = schedule::schedule(&twin.twin().workloads, &self.config.capabilities);
        let mut gone: BTreeSet<WorkloadId> = self.machines.keys().cloned().collect();
        for w in &twin.twin().workloads {
            gone.remove(&w.id);
            let machine = self
                .machines
                .entry(w.id.clone())
                .or_insert_with(|| Machine::new(w.id.clone()));
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
            let decision = decisions.get(&w.id).cloned().unwrap_or(Decision::Run);
            machine.set_desired(Some(Desired {
                workload: w.clone(),
                spec,
                asked_by,
                decision,
            }));
        }
        for id in gone {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.set_desired(None);
            }
        }
        self.want_artifacts(now);
    }

    pub(super) fn want_artifacts(&mut self, _now: Now) {
        let Some(twin) = &self.twin else { return };
        let needed: BTreeMap<Digest, u64> = twin
            .twin()
            .workloads
            .iter()
            .flat_map(artifacts_of)
            .map(|a| (a.digest, a.size))
            .collect();
        self.fetches.retain(|d| needed.contains_key(d));
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

    pub(super) fn missing(&self, machine: &Machine) -> Option<String> {
        let w = &machine.desired()?.workload;
        let a = artifacts_of(w).find(|a| !self.artifacts.contains(&a.digest))?;
        Some(match self.fetches.problem(&a.digest) {
            Some(why) => format!("artifact {}: {why}", a.digest.short()),
            None => format!("artifact {} of {} bytes is being fetched", a.digest.short(), a.size),
        })
    }

    /// Whether a workload fits beside everything that may still be running.
    pub(super) fn fits(&self, machine: &Machine) -> bool {
        let Some(d) = machine.desired() else { return true };
        let (memory, cpu) = self
            .machines
            .values()
            .map(Machine::live_cost)
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let have = &self.config.capabilities;
        memory + d.workload.memory_bytes <= have.memory_bytes && cpu + d.workload.cpu_millis <= have.cpu_millis
    }

    pub(super) fn step(&mut self, id: &WorkloadId, starts: bool, now: Now) {
        // Without a twin nothing is known to be unwanted: what was found running runs on until the parent has answered.
        if self.twin.is_none() {
            return;
        }
        let Some(machine) = self.machines.get(id) else { return };
        let here = self.missing(machine).is_none();
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
            Step::Start => self.start(id),
        }
    }

    pub(super) fn start(&mut self, id: &WorkloadId) {
        let Some(machine) = self.machines.get_mut(id) else {
            return;
        };
        machine.starting();
        let (row, Some(desired)) = (machine.row().clone(), machine.desired()) else {
            return;
        };
        let launch = Launch {
            workload: desired.workload.clone(),
            version: desired.asked_by,
            attempt: row.attempt,
            spec: row.spec,
        };
        self.ops.push(Op::PutInstance(row));
        self.effects.push_back(Action::Start(Box::new(launch)));
        self.collect_garbage();
    }

    /// Artifacts of the twin in force stay; what no workload needs any more goes.
    pub(super) fn collect_garbage(&mut self) {
        let Some(twin) = &self.twin else { return };
        let keep: BTreeSet<Digest> = twin
            .twin()
            .workloads
            .iter()
            .flat_map(artifacts_of)
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
