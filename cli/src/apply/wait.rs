//! Following a deployment until every placed workload has been reported.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use cnova_shared::ids::Name;

use super::ApplyError;
use crate::client::{Hub, HubError};
use crate::model::{Applied, StageRecord, Timeline, WorkloadInfo, Workloads};
use crate::output::Screen;
use crate::routes;

/// First pause between two questions; it grows by half each time.
const POLL_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
const POLL_MAX: Duration = Duration::from_secs(1);
/// How often all workloads are asked for: a larger question than that for one timeline.
const WORKLOADS_EVERY: Duration = Duration::from_secs(2);

/// How it went.
pub(super) struct Followed {
    pub(super) timeline: Vec<StageRecord>,
    /// Empty when everything runs.
    pub(super) missing: Vec<String>,
}

/// A workload, by name in its application, on a node.
type Placed = BTreeSet<(String, String)>;

struct Follower<'h> {
    hub: &'h Hub,
    name: &'h Name,
    generation: u64,
    pending: Placed,
    seen: Vec<StageRecord>,
    /// Why a pending workload does not run, newest word.
    reasons: Vec<WorkloadInfo>,
}

/// Polls the timeline, prints each new stage, and returns when all is reported, nothing more can come, or time is up.
pub(super) fn follow(
    hub: &Hub,
    applied: &Applied,
    seconds: u64,
    screen: &mut Screen<'_>,
) -> Result<Followed, ApplyError> {
    let placed: Placed = applied
        .placed
        .iter()
        .flat_map(|(w, nodes)| nodes.iter().map(|n| (w.clone(), n.clone())))
        .collect();
    if placed.is_empty() {
        let why = |(w, why): (&String, &String)| format!("{}/{w} is on no node: {why}", applied.name);
        let mut missing: Vec<String> = applied.unplaced.iter().map(why).collect();
        if missing.is_empty() {
            missing.push(format!("{} is on no node", applied.name));
        }
        return Ok(Followed {
            timeline: Vec::new(),
            missing,
        });
    }
    let (name, generation) = (&applied.name, applied.generation);
    let mut f = Follower {
        hub,
        name,
        generation,
        pending: placed,
        seen: Vec::new(),
        reasons: Vec::new(),
    };
    let deadline = Instant::now().checked_add(Duration::from_secs(seconds));
    let (mut pause, mut workloads_due) = (POLL_MIN, None);
    // The hub keeps timelines in memory: one of an older generation may have gone with the last restart.
    if !applied.changed {
        workloads_due = Some(Instant::now());
    }
    loop {
        f.read_timeline(screen)?;
        let asked = *workloads_due.get_or_insert_with(|| Instant::now() + WORKLOADS_EVERY);
        let is_late = deadline.is_some_and(|d| Instant::now() >= d);
        if !f.pending.is_empty() && (is_late || Instant::now() >= asked) {
            f.read_workloads()?;
            workloads_due = Some(Instant::now() + WORKLOADS_EVERY);
        }
        if f.pending.is_empty() || f.is_hopeless() || is_late {
            return Ok(f.finish(seconds));
        }
        let left = deadline.map_or(pause, |d| d.saturating_duration_since(Instant::now()));
        thread::sleep(pause.min(left));
        pause = (pause * 3 / 2).min(POLL_MAX);
    }
}

/// The line that a twin walks: stages of the same millisecond are shown in its order.
fn order(stage: &str) -> usize {
    const LINE: [&str; 8] = [
        "admitted",
        "placed",
        "signed",
        "relayed",
        "verified",
        "committed",
        "running",
        "reported",
    ];
    LINE.iter().position(|s| *s == stage).unwrap_or(LINE.len())
}

impl Follower<'_> {
    fn read_timeline(&mut self, screen: &mut Screen<'_>) -> Result<(), ApplyError> {
        let Timeline { mut stages } = self.hub.get(&routes::timeline(self.name, self.generation))?;
        stages.sort_by_key(|s| (s.at_ms, order(&s.stage)));
        let admitted = stages
            .iter()
            .find(|s| s.stage == "admitted")
            .or(stages.first())
            .map_or(0, |s| s.at_ms);
        for stage in stages {
            if self.seen.contains(&stage) {
                continue;
            }
            if let (true, Some(node)) = (stage.stage == "reported", &stage.node) {
                let workload = stage.detail.rsplit('/').next().unwrap_or_default().to_owned();
                self.pending.remove(&(workload, node.clone()));
            }
            if screen.is_table() {
                screen.line(&format!("  {}", stage_line(&stage, admitted)))?;
                screen.flush()?;
            }
            self.seen.push(stage);
        }
        Ok(())
    }

    /// What the nodes last said of what is pending. What ended as it may has run, though nobody saw it running.
    fn read_workloads(&mut self) -> Result<(), HubError> {
        let all: Workloads = self.hub.get(routes::WORKLOADS)?;
        let key = |w: &WorkloadInfo| (w.workload.to_string(), w.node.to_string());
        self.reasons = all
            .workloads
            .into_iter()
            .filter(|w| w.application == *self.name)
            .collect();
        for w in &self.reasons {
            if w.generation >= self.generation && (w.state == "running" || w.state == "finished") {
                self.pending.remove(&key(w));
            }
        }
        self.reasons.retain(|w| self.pending.contains(&key(w)));
        Ok(())
    }

    /// Whether everything that is pending failed too often: its node will not try again.
    fn is_hopeless(&self) -> bool {
        let gave_up = |w: &&WorkloadInfo| w.state == "crash-loop" && w.generation >= self.generation;
        !self.pending.is_empty() && self.reasons.iter().filter(gave_up).count() == self.pending.len()
    }

    fn finish(self, seconds: u64) -> Followed {
        let missing = self.pending.iter().map(|(workload, node)| {
            let last = self
                .reasons
                .iter()
                .find(|w| w.workload.as_str() == workload && w.node.as_str() == node);
            let word = match last {
                Some(w) if w.reason.is_empty() => w.state.clone(),
                Some(w) => format!("{}: {}", w.state, w.reason),
                None => "its node has said nothing of it".to_owned(),
            };
            format!("{}/{workload} on {node}, after {seconds} s or less: {word}", self.name)
        });
        Followed {
            missing: missing.collect(),
            timeline: self.seen,
        }
    }
}

/// One stage, with its time since the manifest was admitted. Clocks of nodes may be off, so it may be negative.
pub(crate) fn stage_line(stage: &StageRecord, admitted_ms: u64) -> String {
    let since = i128::from(stage.at_ms) - i128::from(admitted_ms);
    let node = stage.node.as_deref().unwrap_or("-");
    format!(
        "{:>9}  {:<10} {:<16} by {:<12} {}",
        format!("{since:+} ms"),
        stage.stage,
        node,
        stage.by,
        stage.detail
    )
}
