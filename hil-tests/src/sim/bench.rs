//! The simulator for scenarios: one agent is the board that they are about, everything else stands above it, and nothing goes
//! wrong but what the scenario does. The invariants hold at every step.

use std::time::Duration;

use cnova_agent_core::{Agent, Status};
use cnova_attestation::testing::SoftTpm;
use cnova_hub_core as hub;
use cnova_hub_core::cndl;
use cnova_hub_core::policy::{AdmissionContext, PolicySet};
use cnova_shared::ids::{Digest, NodeId};

use super::agents::ProcessState;
use super::delegated::references;
use super::faults::Faults;
use super::net::Arrival;
use super::pki::{AGENTS, EPOCH_S, HUB, id, site};
use super::world::{Violation, World};
use crate::scenario::Shown;
use crate::scenario::application::Application;

/// What a machine may take to boot, virtual milliseconds.
const BOOT_MS: std::ops::Range<u64> = 500..20_000;

/// The simulator, one board of which is in somebody's hands.
pub struct Bench {
    world: World,
    board: NodeId,
}

impl Bench {
    /// Everything but the board is switched on.
    #[must_use]
    pub fn new(seed: u64, trace_lines: usize) -> Self {
        let mut world = World::new(seed);
        world.keep_trace(trace_lines);
        world.faults = Faults::NONE;
        (world.weather, world.sickness, world.rotates) = (false, false, false);
        world.give_tpms();
        world.hub.stored.references = references(&SoftTpm::new());
        let board = id(AGENTS[0]);
        world.dark.insert(board.clone());
        world.start_nodes();
        Self { world, board }
    }

    /// Virtual time since it began.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.world.now)
    }

    /// Lets time go by.
    ///
    /// # Errors
    /// The invariant that was broken.
    pub fn pass(&mut self, time: Duration) -> Result<(), Violation> {
        let until = self.world.now + u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.world.until_time(until)
    }

    /// The last steps, one a line.
    #[must_use]
    pub fn trace(&self) -> String {
        self.world.violation(String::new()).trace.join("\n")
    }

    /// The board's power comes.
    pub fn switch_on(&mut self, clock_is_lost: bool) {
        let off_s = if clock_is_lost { -self.since_1970() } else { 0 };
        if let Some(a) = self.world.agents.get_mut(&self.board) {
            a.clock_off_s = off_s;
        }
        self.world.dark.remove(&self.board);
        let boot = self.world.rng.u64(BOOT_MS);
        self.world
            .net
            .at(self.world.now + boot, Arrival::Restart(self.board.clone()));
    }

    fn since_1970(&self) -> i64 {
        i64::try_from(EPOCH_S + self.world.now / 1000).unwrap_or(i64::MAX)
    }

    /// The board's power fails.
    pub fn cut_power(&mut self) {
        self.world.dark.insert(self.board.clone());
        let board = self.board.clone();
        self.world.cut_power(&board, false);
    }

    /// The running board's clock says 1970.
    pub fn lose_clock(&mut self) {
        let off_s = -self.since_1970();
        if let Some(a) = self.world.agents.get_mut(&self.board) {
            a.clock_off_s = off_s;
        }
        // As on a board, the agent is started again under it.
        let board = self.board.clone();
        self.world.crash(&board);
    }

    /// What the board takes for the time, seconds since 1970.
    #[must_use]
    pub fn board_time(&self) -> u64 {
        self.world.clock(&self.board).wall_ms / 1000
    }

    /// Nothing can be written on the board any more, or again.
    pub fn fill_disk(&mut self, is_full: bool) {
        match is_full {
            true => self.world.full_disks.insert(self.board.clone()),
            false => self.world.full_disks.remove(&self.board),
        };
    }

    /// The board's link to what is above it is cut, or comes back.
    pub fn cut_network(&mut self, is_cut: bool) {
        let board = self.board.clone();
        match is_cut {
            true => {
                self.world.cut_off.insert(board.clone());
                self.world.disconnect(&board, 1_000);
            }
            false => {
                self.world.cut_off.remove(&board);
            }
        }
    }

    /// Applies an application for the board at the hub.
    ///
    /// # Errors
    /// What the hub does not like about it.
    pub fn apply(&mut self, application: &Application) -> Result<(), String> {
        let which = |runtime: &str| match runtime {
            "wasm" => 0u8,
            "container" => 1,
            _ => 2,
        };
        let artifact = |runtime: &str| format!("digest: \"{}\"", Digest::of(&[which(runtime)]));
        let text = application.manifest(&site(self.board.as_str()).to_string(), artifact);
        let manifest = cndl::parse(&text, "scenario.yaml").map_err(|e| e.to_string())?;
        let context = AdmissionContext {
            user: "sim".into(),
            now_unix_s: self.world.clock(&id(HUB)).wall_ms / 1000,
        };
        let policy = PolicySet::builtin().map_err(|e| e.to_string())?;
        let manifest = policy.admit(manifest, &context).map_err(|e| e.to_string())?;
        let request = self.world.next_request();
        let manifest = Box::new(manifest);
        self.world.hub_event(hub::Event::Apply { request, manifest });
        Ok(())
    }

    fn hub(&self) -> Option<&hub::Hub> {
        self.world.hub.core.as_ref()
    }

    /// What the hub finds the board to be.
    #[must_use]
    pub fn trust(&self) -> Option<String> {
        Some(self.hub()?.attestation(&self.board)?.standing.to_string())
    }

    /// When the hub judged the board last, seconds since 1970; 0 for never.
    #[must_use]
    pub fn judged_s(&self) -> u64 {
        let shown = self.hub().and_then(|h| h.attestation(&self.board));
        shown.map_or(0, |a| a.judged_s)
    }

    /// The board's workloads as the hub shows them.
    #[must_use]
    pub fn at_hub(&self) -> Vec<Shown> {
        let all = self.hub().map(hub::Hub::workloads).unwrap_or_default();
        let here = all.into_iter().filter(|w| w.node == self.board);
        here.map(|w| Shown {
            id: format!("{}/{}", w.application, w.workload),
            state: format!("{:?}", w.state).to_lowercase(),
        })
        .collect()
    }

    /// The newest twin that the hub heard of.
    #[must_use]
    pub fn reported(&self) -> (u64, u64) {
        let shown = self.hub().and_then(|h| h.node(&self.board)).map(|n| n.reported);
        crate::scenario::version(&shown.unwrap_or_default())
    }

    /// Whether the board has said that it has the newest twin that the hub has for it.
    #[must_use]
    pub fn has_newest(&self) -> bool {
        self.hub().and_then(|h| h.node(&self.board)).is_some_and(|n| n.in_sync)
    }

    /// What the board alarmed the hub of.
    #[must_use]
    pub fn alarms_at_hub(&self) -> String {
        let alarms = self.hub().and_then(|h| h.node(&self.board)).map(|n| n.alarms.clone());
        let text = |a: cnova_shared::wire::v1::Alarm| format!("{}: {}", a.code, a.detail);
        alarms
            .unwrap_or_default()
            .into_iter()
            .map(text)
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// What the agent says of itself, while it lives.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        self.world.agents[&self.board].core.as_ref().map(Agent::status)
    }

    /// What the agent alarms of.
    #[must_use]
    pub fn alarms(&self) -> String {
        self.status().map(|s| s.alarms.join("; ")).unwrap_or_default()
    }

    /// Whether a process of the board lives.
    #[must_use]
    pub fn lives(&self, pid: u32) -> bool {
        let mut all = self.world.agents[&self.board].processes.values();
        all.any(|p| p.state == ProcessState::Alive(pid))
    }
}
