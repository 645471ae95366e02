//! The scheduler: what must hold for whatever it is asked, and what people count on.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_agent_core::schedule::{Candidate, Decision, Node, Pressure, Progress, Reason, Scheduler, matches_claim};
use cnova_shared::ids::WorkloadId;
use cnova_shared::wire::v1::{
    Accelerator, AcceleratorClaim, Capabilities, Dependency, DependencyCondition, PowerLevel, RuntimeCapability,
    Schedule, Workload,
};
use proptest::prelude::*;
use support::{workload, workload_id};

const MIB: u64 = 1 << 20;
/// 2026-11-21 00:00 UTC, a Saturday.
const MIDNIGHT_S: u64 = 1_795_219_200;

/// A node that does what the scheduler says, at once.
#[derive(Clone)]
struct World {
    scheduler: Scheduler,
    workloads: Vec<Workload>,
    progress: BTreeMap<WorkloadId, Progress>,
    leases: BTreeMap<WorkloadId, Vec<String>>,
    fired: BTreeMap<WorkloadId, u64>,
    capabilities: Capabilities,
    power: PowerLevel,
    mono_ms: u64,
    clock_is_set: bool,
}

impl World {
    fn new(workloads: Vec<Workload>) -> Self {
        let runtime = RuntimeCapability {
            name: "wasm".into(),
            version: "1".into(),
            engine: "e".into(),
            targets: Vec::new(),
        };
        let npu = |id: &str, kind: &str| Accelerator {
            id: id.into(),
            class: "npu".into(),
            kind: kind.into(),
        };
        Self {
            scheduler: Scheduler::default(),
            workloads,
            progress: BTreeMap::new(),
            leases: BTreeMap::new(),
            fired: BTreeMap::new(),
            capabilities: Capabilities {
                runtimes: vec![runtime],
                memory_bytes: 64 * MIB,
                cpu_millis: 1000,
                accelerators: vec![npu("hailo0", "hailo-8"), npu("accel0", "intel-npu")],
                devices: vec!["serial-1".into()],
            },
            power: PowerLevel::Mains,
            mono_ms: 1000,
            clock_is_set: true,
        }
    }

    fn progress(&self, id: &WorkloadId) -> Progress {
        self.progress.get(id).copied().unwrap_or(Progress::Idle)
    }

    fn decide(&mut self) -> BTreeMap<WorkloadId, Decision> {
        let none: Vec<String> = Vec::new();
        let candidates: Vec<Candidate<'_>> = self
            .workloads
            .iter()
            .map(|w| Candidate {
                workload: w,
                progress: self.progress(&w.id),
                leases: self.leases.get(&w.id).unwrap_or(&none),
                fired_s: self.fired.get(&w.id).copied().unwrap_or(MIDNIGHT_S),
                pending: false,
                bar: None,
                is_update: false,
            })
            .collect();
        let node = Node {
            capabilities: &self.capabilities,
            power: self.power,
            power_why: "as tested",
            clock_s: self.clock_is_set.then(|| MIDNIGHT_S + self.mono_ms / 1000),
            mono_ms: self.mono_ms,
        };
        let mut scheduler = self.scheduler.clone();
        let decisions = scheduler.decide(&candidates, &node);
        self.scheduler = scheduler;
        decisions
    }

    /// Decides and obeys: what may run runs and is healthy, what must not is gone.
    fn step(&mut self) -> BTreeMap<WorkloadId, Decision> {
        let decisions = self.decide();
        for (id, decision) in &decisions {
            match decision {
                Decision::Run { leases, occurrence } => {
                    self.fired
                        .entry(id.clone())
                        .and_modify(|f| *f = (*f).max(*occurrence))
                        .or_insert(*occurrence);
                    if !self.progress(id).is_live() {
                        self.leases.insert(id.clone(), leases.clone());
                        self.progress.insert(id.clone(), Progress::Running { healthy: true });
                    }
                }
                Decision::Wait(_) => {
                    self.leases.remove(id);
                    if self.progress(id).is_live() {
                        self.progress.insert(id.clone(), Progress::Idle);
                    }
                }
                Decision::Hold(_) => {}
            }
        }
        decisions
    }

    /// Decides until nothing changes any more.
    fn settle(&mut self) -> BTreeMap<WorkloadId, Decision> {
        let mut last = self.step();
        for _ in 0..20 {
            let next = self.step();
            if next == last {
                return next;
            }
            last = next;
        }
        panic!("it does not come to rest: {last:#?}");
    }

    fn pass(&mut self, seconds: u64, pressure: Pressure) -> BTreeMap<WorkloadId, Decision> {
        let mut decisions = self.settle();
        for _ in 0..seconds.div_ceil(5) {
            self.mono_ms += 5000;
            self.scheduler.sample(pressure, self.mono_ms);
            decisions = self.settle();
        }
        decisions
    }

    fn running(&self) -> Vec<String> {
        let live = |w: &&Workload| self.progress(&w.id).is_live();
        self.workloads
            .iter()
            .filter(live)
            .map(|w| w.id.name.to_string())
            .collect()
    }

    fn why(&mut self, name: &str) -> String {
        let decisions = self.decide();
        let decision = &decisions[&workload_id(&format!("app/{name}"))];
        decision.reason().map(ToString::to_string).unwrap_or_default()
    }
}

fn w(name: &str, priority: u32, mib: u64) -> Workload {
    Workload {
        priority,
        memory_bytes: mib * MIB,
        ..workload(&format!("app/{name}"), "one")
    }
}

fn needs(name: &str, condition: DependencyCondition) -> Vec<Dependency> {
    vec![Dependency {
        id: workload_id(&format!("app/{name}")),
        condition,
    }]
}

fn cron(cron: &str, window_seconds: Option<u64>) -> Option<Schedule> {
    Some(Schedule {
        cron: cron.into(),
        zone: "UTC".into(),
        window_seconds,
        late_seconds: 0,
    })
}

const HIGH: Pressure = Pressure {
    memory_some: 600,
    memory_full: 300,
    cpu_some: 100,
};

#[test]
fn the_more_important_one_takes_the_place_of_the_lesser_and_equals_stay() {
    let mut world = World::new(vec![w("low", 10, 40), w("equal", 50, 40)]);
    world.workloads.remove(1);
    world.settle();
    assert_eq!(world.running(), ["low"]);
    world.workloads.push(w("equal", 10, 40));
    world.settle();
    assert_eq!(
        world.running(),
        ["low"],
        "what runs stays before what has the same priority"
    );
    world.workloads.push(w("high", 900, 40));
    world.settle();
    assert_eq!(world.running(), ["high"]);
    assert_eq!(
        world.why("low"),
        "memory: asks 40 MiB, 24 MiB of 64 MiB are left by app/high (priority 900)"
    );
    world.workloads.push(w("small", 1, 20));
    world.settle();
    assert_eq!(world.running(), ["high", "small"], "what is left is used");
}

#[test]
fn a_dependency_comes_first_and_is_as_important_as_what_needs_it() {
    let mut app = w("app", 900, 30);
    app.needs = needs("db", DependencyCondition::Healthy);
    let mut world = World::new(vec![app, w("db", 1, 30), w("other", 500, 30)]);
    let first = world.step();
    assert_eq!(
        first[&workload_id("app/app")].reason().unwrap().to_string(),
        "needs: app/db has to be healthy first; it does not run yet"
    );
    world
        .progress
        .insert(workload_id("app/db"), Progress::Running { healthy: false });
    assert!(world.why("app").contains("it runs and is not healthy yet"));
    world
        .progress
        .insert(workload_id("app/db"), Progress::Running { healthy: true });
    world.settle();
    assert_eq!(
        world.running(),
        ["app", "db"],
        "other would have been before db by its own priority"
    );
    // Order is for starts: what runs is not ended because what it needed has failed.
    world.progress.insert(workload_id("app/db"), Progress::CrashLoop);
    world.settle();
    assert!(world.running().contains(&"app".to_owned()));
}

#[test]
fn a_circle_of_needs_is_told_as_one() {
    let mut a = w("a", 1, 1);
    a.needs = needs("b", DependencyCondition::Started);
    let mut b = w("b", 1, 1);
    b.needs = needs("a", DependencyCondition::Started);
    let mut world = World::new(vec![a, b]);
    world.settle();
    assert_eq!(
        world.why("a"),
        "needs: it comes before itself (app/a -> app/b -> app/a)"
    );
    let mut lonely = w("c", 1, 1);
    lonely.needs = needs("nowhere", DependencyCondition::Finished);
    let mut world = World::new(vec![lonely]);
    assert_eq!(
        world.why("c"),
        "needs: app/nowhere has to have finished first; it is not on this node"
    );
}

#[test]
fn accelerators_are_leased_to_one_at_a_time() {
    let claims = |kind: &str, optional: bool| {
        vec![AcceleratorClaim {
            kind: kind.into(),
            optional,
        }]
    };
    let mut any = w("any", 10, 1);
    any.accelerators = claims("npu", false);
    let mut hailo = w("hailo", 20, 1);
    hailo.accelerators = claims("hailo-8", false);
    let mut soft = w("soft", 30, 1);
    soft.accelerators = claims("hailo-8", true);
    let mut world = World::new(vec![any, soft]);
    world.settle();
    let lease = |world: &World, name: &str| world.leases[&workload_id(&format!("app/{name}"))].clone();
    assert_eq!(
        (lease(&world, "soft"), lease(&world, "any")),
        (vec!["hailo0".into()], vec!["accel0".into()])
    );
    // One that needs it and is less important waits, though the other could do without.
    world.workloads.push(hailo);
    world.settle();
    assert_eq!(
        world.why("hailo"),
        "accelerator: every hailo-8 of this node is leased to app/soft (priority 30)"
    );
    world.workloads[2].priority = 40;
    world.settle();
    assert_eq!(lease(&world, "hailo"), ["hailo0"]);
    assert_eq!(lease(&world, "soft"), [""; 0], "it runs on without");
    world.capabilities.accelerators.clear();
    world.settle();
    assert_eq!(world.running(), ["soft"]);
    assert_eq!(world.why("any"), "accelerator: this node has no npu (it has: none)");
}

#[test]
fn a_window_opens_and_closes_and_a_job_runs_once_for_each_time() {
    let mut night = w("night", 1, 1);
    night.schedule = cron("0 2 * * *", Some(3600));
    let mut job = w("job", 1, 1);
    job.schedule = cron("30 * * * *", None);
    let mut world = World::new(vec![night, job]);
    world.settle();
    assert_eq!(world.running(), [""; 0]);
    assert_eq!(
        world.why("night"),
        "schedule: its window is closed; opens at 2026-11-21 02:00 UTC"
    );
    assert_eq!(world.why("job"), "schedule: it runs next at 2026-11-21 00:30 UTC");
    world.pass(1800, Pressure::default());
    assert_eq!(world.running(), ["job"]);
    world
        .progress
        .insert(workload_id("app/job"), Progress::Finished { ok: true });
    world.pass(60, Pressure::default());
    assert_eq!(world.running(), [""; 0], "it does not run twice for one time");
    world.pass(3600 + 1800, Pressure::default());
    assert_eq!(world.running(), ["night", "job"]);
    world.pass(3600, Pressure::default());
    assert_eq!(
        world.running(),
        ["job"],
        "the window has closed, the job ends by itself"
    );
    world.clock_is_set = false;
    assert_eq!(
        world.why("night"),
        "clock: it runs by the clock, and this node's clock is not set"
    );
}

#[test]
fn power_ends_what_runs_on_better_supply_only() {
    let mut main = w("main", 1, 1);
    main.power = PowerLevel::Mains;
    let mut low = w("low", 1, 1);
    low.power = PowerLevel::Low;
    let mut world = World::new(vec![main, low, w("always", 1, 1)]);
    world.settle();
    for (level, running) in [
        (PowerLevel::Battery, vec!["low", "always"]),
        (PowerLevel::Critical, vec!["always"]),
        (PowerLevel::Mains, vec!["main", "low", "always"]),
    ] {
        world.power = level;
        world.settle();
        assert_eq!(world.running(), running, "{level:?}");
    }
    world.power = PowerLevel::Low;
    assert_eq!(
        world.why("main"),
        "power: it runs on mains or better, the node is at low (as tested)"
    );
}

#[test]
fn pressure_ends_the_least_important_first_and_the_most_important_returns_first() {
    let mut world = World::new(vec![w("a", 1, 1), w("b", 2, 1), w("c", 1000, 1)]);
    world.pass(5, HIGH);
    assert_eq!(world.running(), ["a", "b", "c"], "a moment of pressure is none");
    world.pass(15, HIGH);
    assert_eq!(world.running(), ["b", "c"]);
    assert!(
        world.why("a").starts_with("pressure: it was ended to relieve the node"),
        "{}",
        world.why("a")
    );
    world.workloads.push(w("new", 1, 1));
    world.pass(120, HIGH);
    assert_eq!(
        world.running(),
        ["c"],
        "priority 1000 is never ended, and nothing new fills the room"
    );
    assert!(
        world.why("new").starts_with("pressure: nothing of its priority"),
        "{}",
        world.why("new")
    );
    world.pass(50, Pressure::default());
    assert_eq!(world.running(), ["c"], "calm has to last");
    world.pass(20, Pressure::default());
    assert_eq!(world.running(), ["b", "c"]);
    world.pass(70, Pressure::default());
    assert_eq!(world.running(), ["a", "b", "c", "new"]);
    // What has to go again soon stays away longer.
    world.workloads.pop();
    world.pass(20, HIGH);
    let away = world.scheduler.shed().count();
    assert_eq!(away, 1);
    world.pass(70, Pressure::default());
    assert_eq!(world.scheduler.shed().count(), 1);
    world.pass(70, Pressure::default());
    assert_eq!(world.scheduler.shed().count(), 0);
}

fn arbitrary_workload(index: usize) -> impl Strategy<Value = Workload> {
    let claim = prop_oneof![
        4 => Just(None),
        1 => any::<bool>().prop_map(|optional| Some(AcceleratorClaim { kind: "npu".into(), optional })),
        1 => any::<bool>().prop_map(|optional| Some(AcceleratorClaim { kind: "hailo-8".into(), optional })),
    ];
    let when =
        prop_oneof![4 => Just(None), 1 => Just(cron("*/2 * * * *", None)), 1 => Just(cron("*/3 * * * *", Some(60)))];
    let needed = prop_oneof![2 => Just(None), 1 => (0_usize..8).prop_map(Some)];
    let level = prop_oneof![3 => Just(PowerLevel::Critical), 1 => Just(PowerLevel::Battery)];
    let device = prop_oneof![6 => Just(None), 1 => Just(Some("serial-1")), 1 => Just(Some("serial-9"))];
    (0_u32..5, 0_u64..40, 0_u64..700, (claim, when, needed, level, device)).prop_map(
        move |(priority, mib, cpu_millis, (claim, schedule, needed, power, device))| Workload {
            cpu_millis,
            accelerators: claim.into_iter().collect(),
            schedule,
            power,
            needs: needed.map_or_else(Vec::new, |n| needs(&format!("w{n}"), DependencyCondition::Started)),
            devices: device.into_iter().map(str::to_owned).collect(),
            ..w(&format!("w{index}"), priority, mib)
        },
    )
}

#[derive(Clone, Debug)]
enum Happening {
    Pass(u64, Pressure),
    Power(PowerLevel),
    Fails(usize),
    Ends(usize, bool),
    Clock(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    let pressure = prop_oneof![Just(Pressure::default()), Just(HIGH)];
    prop_oneof![
        3 => (1_u64..200, pressure).prop_map(|(s, p)| Happening::Pass(s, p)),
        1 => prop_oneof![Just(PowerLevel::Low), Just(PowerLevel::Mains)].prop_map(Happening::Power),
        2 => (0_usize..8).prop_map(Happening::Fails),
        2 => (0_usize..8, any::<bool>()).prop_map(|(i, ok)| Happening::Ends(i, ok)),
        1 => any::<bool>().prop_map(Happening::Clock),
    ]
}

/// Own priority or that of the most important one that needs it.
fn effective(world: &World) -> BTreeMap<WorkloadId, u32> {
    let mut priorities: BTreeMap<WorkloadId, u32> =
        world.workloads.iter().map(|w| (w.id.clone(), w.priority)).collect();
    for _ in 0..world.workloads.len() {
        for w in &world.workloads {
            let over = matches!(world.progress(&w.id), Progress::Finished { .. } | Progress::CrashLoop);
            for d in w.needs.iter().filter(|_| !over) {
                let own = priorities[&w.id];
                if let Some(p) = priorities.get_mut(&d.id) {
                    *p = (*p).max(own);
                }
            }
        }
    }
    priorities
}

fn check(world: &mut World) -> Result<(), TestCaseError> {
    let before = world.clone();
    let decisions = world.decide();
    prop_assert_eq!(
        &before.clone().decide(),
        &decisions,
        "the same inputs, the same decisions"
    );
    let priorities = effective(world);
    let runs = |id: &WorkloadId| matches!(decisions[id], Decision::Run { .. });
    let running: Vec<&Workload> = world.workloads.iter().filter(|w| runs(&w.id)).collect();
    let sum = |of: fn(&Workload) -> u64, least: u32| -> u64 {
        running
            .iter()
            .filter(|w| priorities[&w.id] >= least)
            .map(|w| of(w))
            .sum()
    };
    let have = &world.capabilities;
    prop_assert!(sum(|w| w.memory_bytes, 0) <= have.memory_bytes);
    prop_assert!(sum(|w| w.cpu_millis, 0) <= have.cpu_millis);
    let mut leased = BTreeSet::new();
    for w in &world.workloads {
        match &decisions[&w.id] {
            Decision::Run { leases, .. } => {
                for lease in leases {
                    prop_assert!(leased.insert(lease.clone()), "{} is leased twice", lease);
                }
                let held = |c: &AcceleratorClaim| {
                    have.accelerators
                        .iter()
                        .any(|a| leases.contains(&a.id) && matches_claim(a, c))
                };
                prop_assert!(w.accelerators.iter().all(|c| c.optional || held(c)));
            }
            Decision::Hold(reason) | Decision::Wait(reason) => {
                prop_assert!(!reason.to_string().is_empty());
                // Only what is as important or more is in the way.
                let p = priorities[&w.id];
                match reason {
                    Reason::Memory { .. } => {
                        prop_assert!(sum(|w| w.memory_bytes, p) + w.memory_bytes > have.memory_bytes);
                    }
                    Reason::Cpu { .. } => prop_assert!(sum(|w| w.cpu_millis, p) + w.cpu_millis > have.cpu_millis),
                    Reason::AcceleratorLeased { by, .. } => {
                        prop_assert!(!by.is_empty() && by.iter().all(|h| h.priority >= p));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked(
        workloads in (0_usize..8).prop_flat_map(|n| (0..n).map(arbitrary_workload).collect::<Vec<_>>()),
        happenings in proptest::collection::vec(happening(), 1..12),
    ) {
        let mut world = World::new(workloads);
        world.settle();
        for happening in happenings {
            let id = |i: usize| workload_id(&format!("app/w{i}"));
            match happening {
                Happening::Pass(seconds, pressure) => { world.pass(seconds, pressure); }
                Happening::Power(level) => world.power = level,
                Happening::Fails(i) if world.progress(&id(i)).is_live() => {
                    world.progress.insert(id(i), Progress::Backoff);
                }
                Happening::Ends(i, ok) if world.progress(&id(i)).is_live() => {
                    world.progress.insert(id(i), Progress::Finished { ok });
                }
                Happening::Clock(set) => world.clock_is_set = set,
                _ => {}
            }
            check(&mut world)?;
            // With the same inputs it comes to rest, and then nothing changes until something happens.
            let rest = world.settle();
            check(&mut world)?;
            prop_assert_eq!(&world.decide(), &rest);
        }
    }
}
