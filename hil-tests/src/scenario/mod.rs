//! Scenarios of a board and its plant, written once and run on whatever can: the simulator, a virtual board, a real one.
//!
//! A scenario is a function over a [`Target`]. What a target cannot do it says ([`Trouble::Unsupported`]), and the
//! scenario is then reported as skipped, with that reason. `cnova-hil scenarios` runs them and writes the [`report`].

pub mod application;
mod board;
mod faults;
mod images;
mod inference;
mod lab;
pub mod labgrid;
mod line;
mod plant;
pub mod report;
mod run;
mod simulator;
mod soak;
pub mod targets;
pub mod update;

use std::time::Duration;

use cnova_agent_core::Status;
use thiserror::Error;

pub use run::{Options, Run, run_all, run_on};

use application::Application;
use update::{System, SystemAtHub};

/// Why a scenario does not come to its end.
#[derive(Debug, Error)]
pub enum Trouble {
    /// The target cannot do it; the scenario is skipped.
    #[error("{0}")]
    Unsupported(String),
    /// Something is not as it must be.
    #[error("{0}")]
    Failed(String),
}

impl Trouble {
    /// Something went wrong that must not.
    pub fn failed(why: impl std::fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }

    /// The target cannot do this.
    #[must_use]
    pub fn unsupported(why: &str) -> Self {
        Self::Unsupported(why.to_owned())
    }
}

/// What a step comes to.
pub type Done<T = ()> = Result<T, Trouble>;

/// The clock that a board is switched on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// It is right.
    Right,
    /// Its battery is empty: it says 1 January 1970.
    Lost,
}

/// What a workload is, as the hub shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// `application/name`.
    pub id: String,
    /// As `cnova get workloads` says it.
    pub state: String,
}

/// Memory of the agent with all that it starts, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What they may take.
    pub budget: u64,
    /// What they take now, with the page cache that is accounted to them.
    pub now: u64,
    /// The most that they took since the board was switched on; what the kernel does not tell is 0.
    pub peak: u64,
    /// The proportional set size of all of their processes.
    pub pss: u64,
    /// How often a process of theirs was killed for lack of memory.
    pub kills: u64,
}

/// What a long run looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Since the target began.
    pub at: Duration,
    /// Proportional set size of the agent's process, bytes.
    pub agent_pss: u64,
    /// The same of all runtimes and what they run.
    pub runtimes_pss: u64,
    /// Open descriptors of the agent and the runtimes.
    pub descriptors: u64,
    /// Bytes written to the state partition since the board was switched on.
    pub written: u64,
}

/// A board with its plant above it. Times are of the target: the simulator's are virtual.
///
/// Whatever a target cannot do answers [`Trouble::Unsupported`] with the reason, which a person reads in the report.
pub trait Target {
    /// What it is and which versions it has, for the report.
    fn about(&mut self) -> Vec<(String, String)>;
    /// Time since it began.
    fn now(&self) -> Duration;
    /// Lets time go by.
    ///
    /// # Errors
    /// Something that must always hold did not.
    fn pass(&mut self, time: Duration) -> Done;
    /// How long anything may take before it counts as not happening.
    fn patience(&self) -> Duration;
    /// The last it said, for the report of a failure.
    fn tail(&mut self) -> String;
    /// The end of a board that is to be thrown away after a failure; [`Target::flash`] makes another one.
    fn give_up(&mut self);

    /// A new board: flashed, known to the hub by its TPM, switched off.
    ///
    /// # Errors
    /// [`Trouble`].
    fn flash(&mut self) -> Done;
    /// Switches it on.
    ///
    /// # Errors
    /// [`Trouble`].
    fn switch_on(&mut self, clock: Clock) -> Done;
    /// Cuts its power.
    ///
    /// # Errors
    /// [`Trouble`].
    fn cut_power(&mut self) -> Done;
    /// Waits until it can be asked.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it does not come up.
    fn wait_booted(&mut self) -> Done;
    /// Starts it again in order; it is on its way up then.
    ///
    /// # Errors
    /// [`Trouble`].
    fn restart(&mut self) -> Done;
    /// Whether the boot loader counts no more, because the boot was found good.
    ///
    /// # Errors
    /// [`Trouble`].
    fn is_blessed(&mut self) -> Done<bool>;

    /// Changes one byte of the root that it boots. It is on before, and off then.
    ///
    /// # Errors
    /// [`Trouble`].
    fn damage_root(&mut self) -> Done;
    /// Switches it on and waits until it refused its root; what it said.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when it boots.
    fn wait_refused(&mut self) -> Done<String>;
    /// Makes the root what it was. It is off then.
    ///
    /// # Errors
    /// [`Trouble`]; the board must be flashed then.
    fn mend_root(&mut self) -> Done;
    /// Fills the state partition to the last byte.
    ///
    /// # Errors
    /// [`Trouble`].
    fn fill_disk(&mut self) -> Done;
    /// Undoes [`Target::fill_disk`].
    ///
    /// # Errors
    /// [`Trouble`].
    fn free_disk(&mut self) -> Done;
    /// What the board takes for the time, seconds since 1970.
    ///
    /// # Errors
    /// [`Trouble`].
    fn board_time(&mut self) -> Done<u64>;
    /// Sets the clock of the running board to 1 January 1970.
    ///
    /// # Errors
    /// [`Trouble`].
    fn lose_clock(&mut self) -> Done;
    /// Whether a ledger of this board was ever found damaged and set aside.
    ///
    /// # Errors
    /// [`Trouble`].
    fn lost_its_ledger(&mut self) -> Done<bool>;

    /// Nothing above the board can be reached.
    ///
    /// # Errors
    /// [`Trouble`].
    fn cut_network(&mut self) -> Done;
    /// Everything above it is back.
    ///
    /// # Errors
    /// [`Trouble`].
    fn heal_network(&mut self) -> Done;

    /// What the hub thinks of the board, once it has said hello: `warning`, `affirming`, ...
    ///
    /// # Errors
    /// [`Trouble`].
    fn trust(&mut self) -> Done<Option<String>>;
    /// Whether the hub has the board connected, or what is between them says so.
    ///
    /// # Errors
    /// [`Trouble`].
    fn is_connected(&mut self) -> Done<bool>;
    /// What the board booted is how it is to be.
    ///
    /// # Errors
    /// [`Trouble`].
    fn approve(&mut self) -> Done;
    /// Applies an application at the hub.
    ///
    /// # Errors
    /// [`Trouble`].
    fn deploy(&mut self, application: &Application) -> Done;
    /// Takes an application back.
    ///
    /// # Errors
    /// [`Trouble`].
    fn remove(&mut self, application: &str) -> Done;
    /// The workloads of the board as the hub shows them.
    ///
    /// # Errors
    /// [`Trouble`].
    fn at_hub(&mut self) -> Done<Vec<Shown>>;
    /// The newest twin that the board reported to the hub: epoch and generation.
    ///
    /// # Errors
    /// [`Trouble`].
    fn reported(&mut self) -> Done<(u64, u64)>;
    /// What the agent alarmed the hub of.
    ///
    /// # Errors
    /// [`Trouble`].
    fn alarms_at_hub(&mut self) -> Done<String>;
    /// The end of a workload's log, asked of the hub.
    ///
    /// # Errors
    /// [`Trouble`].
    fn workload_log(&mut self, id: &str) -> Done<String>;
    /// Why a workload runs where it does or not, of the hub.
    ///
    /// # Errors
    /// [`Trouble`].
    fn explain(&mut self, id: &str) -> Done<String>;

    /// What the agent on the board says of itself; nothing while it does not answer.
    ///
    /// # Errors
    /// [`Trouble`].
    fn status(&mut self) -> Done<Option<Status>>;
    /// That the workloads which ran then are still the same processes, whether or not the agent answers.
    ///
    /// # Errors
    /// [`Trouble::Failed`] with the one that is not.
    fn workloads_alive(&mut self, then: &Status) -> Done;
    /// Whether the board has reported the newest twin that the hub has for it.
    ///
    /// # Errors
    /// [`Trouble`].
    fn has_newest(&mut self) -> Done<bool>;
    /// When the hub judged the board last, seconds since 1970; 0 for never.
    ///
    /// # Errors
    /// [`Trouble`].
    fn judged_s(&mut self) -> Done<u64>;
    /// Makes the bundle of another system for the board; the same is made once.
    ///
    /// # Errors
    /// [`Trouble`].
    fn build_system(&mut self, system: &System) -> Done;
    /// Asks the hub to bring it to the board.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when the hub refuses it.
    fn offer(&mut self, system: &System) -> Done;
    /// The same with one byte changed; how the hub refused it.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when the hub takes it.
    fn offer_damaged(&mut self, system: &System) -> Done<String>;
    /// Approves that the board boots it.
    ///
    /// # Errors
    /// [`Trouble`].
    fn approve_system(&mut self, system: &System) -> Done;
    /// What the hub knows of the system of the board.
    ///
    /// # Errors
    /// [`Trouble`].
    fn system_at_hub(&mut self) -> Done<SystemAtHub>;
    /// Sees to it that a board that started itself anew is on its way up again; whether it can be asked now.
    ///
    /// # Errors
    /// [`Trouble`].
    fn follow(&mut self) -> Done<bool>;
    /// Memory of the agent with all that it starts.
    ///
    /// # Errors
    /// [`Trouble`].
    fn memory(&mut self) -> Done<Memory>;
    /// Runs `cnova` on the board itself: it shows what the board trusts, and asks the hub for its nodes. Its version and the
    /// board's processor.
    ///
    /// # Errors
    /// [`Trouble`].
    fn cnova_on_board(&mut self) -> Done<String>;
    /// Memory, descriptors and writes now.
    ///
    /// # Errors
    /// [`Trouble`].
    fn sample(&mut self) -> Done<Sample>;
}

/// Epoch and generation out of `epoch.generation`, as the hub shows them; zeros for none.
pub(crate) fn version(text: &str) -> (u64, u64) {
    let parts = text.split_once('.');
    parts
        .and_then(|(e, g)| Some((e.parse().ok()?, g.parse().ok()?)))
        .unwrap_or_default()
}

/// One scenario.
pub struct Scenario {
    /// How it is chosen.
    pub name: &'static str,
    /// What it shows, for a person.
    pub shows: &'static str,
    /// What a real board needs for it beside power and a console.
    pub needs: &'static str,
    /// What it is.
    pub(crate) run: fn(&mut Run<'_>) -> Done,
}

/// All scenarios, in the order in which they are run.
pub const ALL: [Scenario; 11] = [
    Scenario {
        name: "line",
        shows: "flashed, enrolled by its TPM, attested, given Wasm, a container and eBPF, cut off, started again: all \
                are back without the hub, within the budget of memory",
        needs: "a TPM 2.0",
        run: line::line,
    },
    Scenario {
        name: "changed-byte",
        shows: "with one byte of its root changed it does not start",
        needs: "a root with dm-verity; the board is flashed again afterwards",
        run: faults::changed_byte,
    },
    Scenario {
        name: "power-cuts",
        shows: "power cut again and again in the middle of a boot, a deploy or a write of the ledger: nothing is lost",
        needs: "a power switch",
        run: faults::power_cuts,
    },
    Scenario {
        name: "os-update",
        shows: "the operating system changed by its twin: written, started and kept when its workloads run; left by the loader \
                when they do not; an older one that stays",
        needs: "two slots",
        run: update::os_update,
    },
    Scenario {
        name: "update-power-cut",
        shows: "power cut in the middle of an update of the operating system: one of the two systems starts",
        needs: "a power switch and two slots",
        run: update::update_power_cut,
    },
    Scenario {
        name: "full-disk",
        shows: "the state partition is full: what runs runs on, the agent says so, and goes on once there is room",
        needs: "nothing more",
        run: faults::full_disk,
    },
    Scenario {
        name: "lost-clock",
        shows: "switched on in 1970 without a network: all workloads run, and the time the agent takes is none before what it knows",
        needs: "a real-time clock that can be set, or none",
        run: faults::lost_clock,
    },
    Scenario {
        name: "brown-out",
        shows: "power fails again and again shortly after it came: left alone the board comes back in the same slot",
        needs: "a power switch",
        run: faults::brown_out,
    },
    Scenario {
        name: "inference-cpu",
        shows: "a model is computed on the processor, in a Wasm workload",
        needs: "cnova-wasm-nn in the image",
        run: inference::on_processor,
    },
    Scenario {
        name: "inference-npu",
        shows: "an NPU is found, leased and used; where there is none, the hub says that no node has it",
        needs: "a Hailo or Intel NPU with its vendor's library",
        run: inference::on_npu,
    },
    Scenario {
        name: "soak",
        shows: "a long run in which memory, descriptors and writes to the flash do not grow",
        needs: "time: SOAK=1440 is a day",
        run: soak::soak,
    },
];

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = ALL.iter().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
