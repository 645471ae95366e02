//! The simulator as a target: one of its agents is the board, with the real cores of hub and gateways above it.

use std::time::Duration;

use cnova_agent_core::Status;

use super::application::Application;
use super::update::{System, SystemAtHub};
use super::{Clock, Done, Memory, Sample, Shown, Target, Trouble};
use crate::sim::bench::Bench;

/// Virtual time that anything may take.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
const TWO_SLOTS: &str = "boot loader with two slots";
/// How long it is off in a restart.
const OFF: Duration = Duration::from_secs(5);
/// Lines of the trace that a report shows.
const TRACE_LINES: usize = 200;

/// A simulated board.
pub(super) struct Simulator {
    seed: u64,
    boards: u64,
    bench: Option<Bench>,
    before: Duration,
}

impl Simulator {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            boards: 0,
            bench: None,
            before: Duration::ZERO,
        }
    }

    fn bench(&mut self) -> Done<&mut Bench> {
        self.bench
            .as_mut()
            .ok_or_else(|| Trouble::failed("the board was never flashed"))
    }
}

/// What has no place in a simulated board.
fn no<T>(what: &str) -> Done<T> {
    Err(Trouble::Unsupported(format!("the simulator has no {what}")))
}

impl Target for Simulator {
    fn about(&mut self) -> Vec<(String, String)> {
        vec![
            (
                "simulator".into(),
                "the real cores of a hub, two gateways and three agents in virtual time".into(),
            ),
            ("seed".into(), self.seed.to_string()),
            ("programs".into(), env!("CARGO_PKG_VERSION").into()),
        ]
    }

    fn now(&self) -> Duration {
        self.before + self.bench.as_ref().map(Bench::now).unwrap_or_default()
    }

    fn pass(&mut self, time: Duration) -> Done {
        self.bench()?.pass(time).map_err(Trouble::failed)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn tail(&mut self) -> String {
        self.bench.as_ref().map(Bench::trace).unwrap_or_default()
    }

    fn give_up(&mut self) {
        self.before = self.now();
        self.bench = None;
    }

    fn flash(&mut self) -> Done {
        self.give_up();
        self.boards += 1;
        // Another board is another run.
        let seed = self.seed.wrapping_mul(1_000).wrapping_add(self.boards);
        self.bench = Some(Bench::new(seed, TRACE_LINES));
        Ok(())
    }

    fn switch_on(&mut self, clock: Clock) -> Done {
        self.bench()?.switch_on(clock == Clock::Lost);
        Ok(())
    }

    fn cut_power(&mut self) -> Done {
        self.bench()?.cut_power();
        Ok(())
    }

    fn wait_booted(&mut self) -> Done {
        let until = self.now() + PATIENCE;
        while self.bench()?.status().is_none() {
            if self.now() > until {
                return Err(Trouble::failed("the agent does not start"));
            }
            self.pass(Duration::from_secs(1))?;
        }
        Ok(())
    }

    fn restart(&mut self) -> Done {
        self.bench()?.cut_power();
        self.pass(OFF)?;
        self.bench()?.switch_on(false);
        Ok(())
    }

    fn is_blessed(&mut self) -> Done<bool> {
        no("boot loader")
    }

    fn damage_root(&mut self) -> Done {
        no("root file system: a board in QEMU shows what dm-verity does")
    }

    fn wait_refused(&mut self) -> Done<String> {
        no("root file system")
    }

    fn mend_root(&mut self) -> Done {
        no("root file system")
    }

    fn fill_disk(&mut self) -> Done {
        self.bench()?.fill_disk(true);
        Ok(())
    }

    fn free_disk(&mut self) -> Done {
        self.bench()?.fill_disk(false);
        Ok(())
    }

    fn board_time(&mut self) -> Done<u64> {
        Ok(self.bench()?.board_time())
    }

    fn lose_clock(&mut self) -> Done {
        self.bench()?.lose_clock();
        Ok(())
    }

    fn lost_its_ledger(&mut self) -> Done<bool> {
        // Its store is only ever lost where the simulation says so, and here it does not.
        Ok(self.bench()?.alarms().contains("set-aside"))
    }

    fn cut_network(&mut self) -> Done {
        self.bench()?.cut_network(true);
        Ok(())
    }

    fn heal_network(&mut self) -> Done {
        self.bench()?.cut_network(false);
        Ok(())
    }

    fn trust(&mut self) -> Done<Option<String>> {
        Ok(self.bench()?.trust())
    }

    fn is_connected(&mut self) -> Done<bool> {
        Ok(self.bench()?.status().is_some_and(|s| s.connected))
    }

    fn approve(&mut self) -> Done {
        // The simulated hub has had the reference values from the beginning.
        Ok(())
    }

    fn deploy(&mut self, application: &Application) -> Done {
        if application.inference.is_some() {
            return no("engine for inference");
        }
        self.bench()?.apply(application).map_err(Trouble::failed)
    }

    fn remove(&mut self, _application: &str) -> Done {
        no("application but one")
    }

    fn at_hub(&mut self) -> Done<Vec<Shown>> {
        Ok(self.bench()?.at_hub())
    }

    fn reported(&mut self) -> Done<(u64, u64)> {
        Ok(self.bench()?.reported())
    }

    fn judged_s(&mut self) -> Done<u64> {
        Ok(self.bench()?.judged_s())
    }

    fn has_newest(&mut self) -> Done<bool> {
        Ok(self.bench()?.has_newest())
    }

    fn alarms_at_hub(&mut self) -> Done<String> {
        Ok(self.bench()?.alarms_at_hub())
    }

    fn workload_log(&mut self, _id: &str) -> Done<String> {
        no("logs of workloads")
    }

    fn explain(&mut self, _id: &str) -> Done<String> {
        no("command line")
    }

    fn status(&mut self) -> Done<Option<Status>> {
        Ok(self.bench()?.status())
    }

    fn workloads_alive(&mut self, then: &Status) -> Done {
        let bench = self.bench()?;
        let dead = then.workloads.iter().find(|w| w.pid != 0 && !bench.lives(w.pid));
        match dead {
            Some(w) => Err(Trouble::Failed(format!("{} does not live any more", w.id))),
            None => Ok(()),
        }
    }

    fn build_system(&mut self, _: &System) -> Done {
        no(TWO_SLOTS)
    }

    fn offer(&mut self, _: &System) -> Done {
        no(TWO_SLOTS)
    }

    fn offer_damaged(&mut self, _: &System) -> Done<String> {
        no(TWO_SLOTS)
    }

    fn approve_system(&mut self, _: &System) -> Done {
        no(TWO_SLOTS)
    }

    fn system_at_hub(&mut self) -> Done<SystemAtHub> {
        no(TWO_SLOTS)
    }

    fn follow(&mut self) -> Done<bool> {
        Ok(self.bench()?.status().is_some())
    }

    fn memory(&mut self) -> Done<Memory> {
        no("memory")
    }

    fn cnova_on_board(&mut self) -> Done<String> {
        no("a shell for cnova")
    }

    fn sample(&mut self) -> Done<Sample> {
        no("processes whose memory could grow")
    }
}
