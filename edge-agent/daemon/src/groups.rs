//! The control groups of this agent's instances.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use cnova_devices::{Controller, Groups as Hierarchies};
use cnova_ral::cgroup::{Group, GroupError, Parent, Usage};
use cnova_shared::ids::{Digest, WorkloadId};
use cnova_shared::wire::v1::Alarm;

use crate::instance::InstanceId;

/// The code of the alarm that says what is not accounted or limited.
const ALARM: &str = "control-groups";
/// Where the groups of all instances are, unless the configuration says another place or the root group is closed.
pub(crate) const ROOT_GROUP: &str = "cnova";
/// Digits of the mark that tells the groups of several agents on one machine apart.
const MARK_DIGITS: usize = 8;
/// A group whose last process has just ended can be busy for a moment.
const REMOVE_TRIES: u32 = 10;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// Where the groups of instances are made, or nothing where that is not permitted.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    parent: Option<Arc<Parent>>,
    /// Ends the name of every group of this agent.
    mark: String,
}

impl Groups {
    /// Finds the place, once. Without one the agent runs all the same, and says so.
    pub(crate) fn find(state_dir: &Path, cgroup_parent: Option<&str>) -> (Self, Option<Alarm>) {
        let path = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let digest = Digest::of(path.as_os_str().as_encoded_bytes()).hex();
        let mark = format!("@{}", digest.get(..MARK_DIGITS).unwrap_or_default());
        let (parent, problem) = match Parent::find(cgroup_parent) {
            Ok(parent) => {
                let missing = parent.missing().join(", ");
                let problem = (!missing.is_empty()).then(|| {
                    format!("the kernel gives no controller for {missing}: that is neither accounted nor limited here")
                });
                (Some(Arc::new(parent)), problem)
            }
            Err(error) => (None, Some(error.to_string())),
        };
        let alarm = problem.map(|detail| Alarm {
            code: ALARM.into(),
            detail,
        });
        (Self { parent, mark }, alarm)
    }

    /// Where they are made, a folder for each hierarchy.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.parent.iter().flat_map(|parent| parent.folders())
    }

    /// The name of an instance's group.
    fn name(&self, id: &InstanceId) -> String {
        let WorkloadId { application, name } = &id.workload;
        format!("{application}.{name}.{}{}", id.attempt, self.mark)
    }

    /// Makes the group of an instance that is about to start.
    pub(crate) fn create(&self, id: &InstanceId) -> Result<Option<Group>, GroupError> {
        let Some(parent) = &self.parent else { return Ok(None) };
        Group::create(parent, &self.name(id)).map(Some)
    }

    /// What an instance uses; nothing if it has no group.
    pub(crate) fn usage(&self, id: &InstanceId) -> Option<Usage> {
        let group = self.parent.as_ref()?.open(&self.name(id)).ok()??;
        group.usage().ok()
    }

    /// Ends whatever an instance left running and removes its group. Blocks.
    pub(crate) fn end(&self, id: &InstanceId) {
        self.end_named(&self.name(id));
    }

    /// Ends what is left of instances that are not among `alive`: those that ended while no agent ran. Blocks.
    pub(crate) fn sweep(&self, alive: &BTreeSet<InstanceId>) {
        let Some(parent) = &self.parent else { return };
        let names = match parent.names() {
            Ok(names) => names,
            Err(error) => return tracing::warn!(%error, "cannot look for control groups of instances that are gone"),
        };
        let kept: BTreeSet<String> = alive.iter().map(|id| self.name(id)).collect();
        for name in names.iter().filter(|n| n.ends_with(&self.mark) && !kept.contains(*n)) {
            self.end_named(name);
        }
    }

    fn end_named(&self, name: &str) {
        let Some(parent) = &self.parent else { return };
        let group = match parent.open(name) {
            Ok(Some(group)) => group,
            Ok(None) => return,
            Err(error) => return tracing::warn!(group = name, %error, "cannot open a control group"),
        };
        if let Ok(left) = group.processes()
            && !left.is_empty()
        {
            tracing::info!(
                group = name,
                processes = left.len(),
                "ending what an instance left running"
            );
        }
        let ended = group.kill().and_then(|()| remove(&group));
        if let Err(error) = ended {
            tracing::warn!(group = name, %error, "the control group of an instance that ended stays");
        }
    }

    /// The limits that count for the capacity: not those of the agent's own group, unless its workloads are below it.
    /// `own` was read before the groups were made, because that may have moved the agent.
    pub(crate) fn limits(&self, own: Hierarchies) -> Hierarchies {
        let Some(parent) = &self.parent else { return own };
        let of_agent = own.folders(Controller::Memory).first();
        let inside = of_agent.is_none_or(|of_agent| parent.folders().any(|folder| folder.starts_with(of_agent)));
        if inside { own } else { own.parent() }
    }
}

fn remove(group: &Group) -> Result<(), GroupError> {
    let mut tries = 1;
    loop {
        match group.remove() {
            Err(_) if tries < REMOVE_TRIES => sleep(REMOVE_PAUSE),
            result => return result,
        }
        tries += 1;
    }
}
