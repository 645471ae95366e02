//! Running scenarios one after the other, and what came of each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cnova_agent_core::Status;
use cnova_shared::wire::v1::WorkloadState;

use super::application::Application;
use super::inference::seconds;
use super::report::{End, Outcome, Report};
use super::targets::TargetName;
use super::{Clock, Done, Scenario, Target, Trouble};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a person may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder with the programs of the plant.
    pub bin: PathBuf,
    /// The folder with the programs of the board, which may have another architecture.
    pub board_bin: PathBuf,
    /// How often the power is cut.
    pub cuts: usize,
    /// How long the long run is.
    pub soak: Duration,
    /// Of everything that is drawn.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bin: "target/debug".into(),
            board_bin: "target/debug".into(),
            cuts: 5,
            soak: Duration::from_secs(180),
            seed: 0,
        }
    }
}

/// A scenario under way.
pub struct Run<'a> {
    /// What it runs on.
    pub target: &'a mut dyn Target,
    /// What a person chose.
    pub options: &'a Options,
    /// What is drawn.
    pub random: fastrand::Rng,
    /// Whether the board is enrolled, attested and on.
    is_prepared: &'a mut bool,
    version: &'a mut usize,
    measures: Vec<(String, String)>,
    notes: Vec<String>,
}

impl Run<'_> {
    /// Something that was measured, for the report.
    pub fn measure(&mut self, what: &str, value: impl Into<String>) {
        self.measures.push((what.to_owned(), value.into()));
    }

    /// Something that a person should know.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// A part of a scenario that not every target can do: what it cannot is noted with the reason, and nothing comes of it.
    ///
    /// # Errors
    /// What failed.
    pub fn if_possible<T>(&mut self, what: &str, part: impl FnOnce(&mut Self) -> Done<T>) -> Done<Option<T>> {
        match part(self) {
            Ok(value) => Ok(Some(value)),
            Err(Trouble::Unsupported(why)) => {
                self.note(format!("left out here, {what}: {why}"));
                Ok(None)
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Waits until it is so.
    ///
    /// # Errors
    /// It does not come to pass within the target's patience, or cannot be found out.
    pub fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> Done<bool>) -> Done {
        let patience = self.target.patience();
        let until = self.target.now() + patience;
        while !is_so(self)? {
            if self.target.now() > until {
                return Err(Trouble::Failed(format!("not within {}: {what}", seconds(patience))));
            }
            self.target.pass(LOOK_EVERY)?;
        }
        Ok(())
    }

    /// What the agent says of itself; it is waited for.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&mut self) -> Done<Status> {
        let mut found = None;
        self.until("the agent answers", |run| {
            found = run.target.status()?;
            Ok(found.is_some())
        })?;
        found.ok_or_else(|| Trouble::failed("the agent does not answer"))
    }

    /// Waits until the board itself says that these run.
    ///
    /// # Errors
    /// They do not.
    pub fn until_running(&mut self, ids: &[String]) -> Done {
        let mut last = String::new();
        let waited = self.until("all workloads run", |run| {
            let Some(status) = run.target.status()? else {
                last = "the agent does not answer".into();
                return Ok(false);
            };
            last = short(&status);
            Ok(ids.iter().all(|id| runs(&status, id)))
        });
        waited.map_err(|trouble| match trouble {
            Trouble::Failed(why) => Trouble::Failed(format!("{why}; the agent says: {last}")),
            other => other,
        })
    }

    /// The next version of the application with all three runtimes.
    pub fn next_version(&mut self) -> Application {
        *self.version += 1;
        Application::line(*self.version)
    }

    /// A board that is enrolled, attested and runs a workload of each runtime, with a hub above it: the one of the
    /// scenario before, if that went well, else a new one.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn prepare(&mut self) -> Done {
        if *self.is_prepared {
            return self.until_running(&Application::line(0).workloads());
        }
        self.target.flash()?;
        self.target.switch_on(Clock::Right)?;
        self.target.wait_booted()?;
        self.prepare_from_boot()
    }

    /// The same of a new board that has booted.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn prepare_from_boot(&mut self) -> Done {
        self.until("the board is enrolled and appraised", |run| {
            Ok(run.target.trust()?.is_some_and(|t| t == "warning" || t == "affirming"))
        })?;
        // The first start may grow the state partition, which changes the partition table and so PCR 5 of all later ones: what is
        // approved is the second.
        self.target.restart()?;
        let of_first = self.target.judged_s()?;
        self.target.wait_booted()?;
        self.until("the board is appraised after its second start", |run| {
            let is_judged = run.target.is_connected()? && run.target.judged_s()? > of_first;
            Ok(is_judged && run.target.trust()?.is_some_and(|t| t == "warning" || t == "affirming"))
        })?;
        self.target.approve()?;
        self.until("the board is attested", |run| {
            Ok(run.target.trust()?.as_deref() == Some("affirming"))
        })?;
        let application = self.next_version();
        self.target.deploy(&application)?;
        self.until_running(&application.workloads())?;
        *self.is_prepared = true;
        Ok(())
    }

    /// The board is again as [`Run::prepare`] left it.
    pub fn is_as_prepared(&mut self) {
        *self.is_prepared = true;
    }

    /// The board is not what it was: the next scenario begins with a new one.
    pub fn spoil(&mut self) {
        *self.is_prepared = false;
    }
}

/// Whether a workload runs.
pub(super) fn runs(status: &Status, id: &str) -> bool {
    { &status.workloads }
        .iter()
        .any(|w| w.id == id && w.state == WorkloadState::Running)
}

/// A status in one line.
fn short(status: &Status) -> String {
    let workloads = { &status.workloads }
        .iter()
        .map(|w| format!("{} {:?} {}", w.id, w.state, w.reason.lines().next().unwrap_or_default()));
    let all: Vec<String> = workloads.chain(status.alarms.iter().cloned()).collect();
    format!("twin {}.{}; {}", status.epoch, status.generation, all.join("; "))
}

/// Runs them in order. What a scenario is doing is said on stderr.
#[allow(clippy::print_stderr)]
pub fn run_all(name: &str, target: &mut dyn Target, scenarios: &[&Scenario], options: &Options) -> Report {
    let (mut is_prepared, mut version) = (false, 0);
    let mut outcomes = Vec::new();
    for scenario in scenarios {
        eprintln!("== {}: {}", scenario.name, scenario.shows);
        let begin = (Instant::now(), target.now());
        let mut run = Run {
            target: &mut *target,
            options,
            random: fastrand::Rng::with_seed(options.seed),
            is_prepared: &mut is_prepared,
            version: &mut version,
            measures: Vec::new(),
            notes: Vec::new(),
        };
        let done = (scenario.run)(&mut run);
        let (measures, notes) = (run.measures, run.notes);
        let end = match done {
            Ok(()) => End::Passed,
            Err(Trouble::Unsupported(why)) => End::Skipped(why),
            Err(Trouble::Failed(why)) => {
                let tail = target.tail();
                target.give_up();
                is_prepared = false;
                End::Failed { why, tail }
            }
        };
        eprintln!("   {end} after {}", seconds(begin.0.elapsed()));
        for (what, value) in &measures {
            eprintln!("   {what}: {value}");
        }
        outcomes.push(Outcome {
            name: scenario.name,
            shows: scenario.shows,
            needs: scenario.needs,
            took: begin.0.elapsed(),
            board_time: target.now().saturating_sub(begin.1),
            measures,
            notes,
            end,
        });
    }
    Report {
        target: name.to_owned(),
        about: target.about(),
        outcomes,
    }
}

/// Runs them on the target of this name, in a folder that goes with it. Where the target cannot be had, all are skipped and
/// say why.
#[must_use]
pub fn run_on(name: &TargetName, scenarios: &[&Scenario], options: &Options) -> Report {
    let text = name.to_string();
    let work = tempfile::Builder::new().prefix("cnova-scenarios-").tempdir();
    let opened = work.map_err(Trouble::failed).and_then(|work| {
        let target = name.open(work.path(), options)?;
        Ok((work, target))
    });
    let trouble = match opened {
        Ok((_work, mut target)) => return run_all(&text, &mut *target, scenarios, options),
        Err(trouble) => trouble,
    };
    let end = match trouble {
        Trouble::Unsupported(why) => End::Skipped(why),
        Trouble::Failed(why) => End::Failed {
            why,
            tail: String::new(),
        },
    };
    let none = |scenario: &&Scenario| Outcome {
        name: scenario.name,
        shows: scenario.shows,
        needs: scenario.needs,
        took: Duration::ZERO,
        board_time: Duration::ZERO,
        measures: Vec::new(),
        notes: Vec::new(),
        end: end.clone(),
    };
    Report {
        target: text,
        about: Vec::new(),
        outcomes: scenarios.iter().map(none).collect(),
    }
}
