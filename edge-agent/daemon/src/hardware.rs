//! What the node has beside CPU and memory: accelerators that are leased, and devices that the configuration offers.

use std::path::PathBuf;

use cnova_devices::{ConfiguredDevices, DeviceConfig, DeviceError, FoundAccelerator, discover};
use cnova_ral::Device;
use cnova_shared::wire::v1::{Accelerator, Alarm, Workload};
use thiserror::Error;

/// Why a workload does not get what it was promised: it went between the decision and the start.
#[derive(Debug, Error)]
pub(crate) enum HardwareError {
    #[error("accelerator {id} is not there any more")]
    Gone { id: String },
    #[error("accelerator {id} cannot be used: {why}")]
    Unusable { id: String, why: String },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The node's hardware, looked at anew each time.
#[derive(Clone, Debug)]
pub(crate) struct Hardware {
    root: PathBuf,
    devices: ConfiguredDevices,
}

/// What can be given out now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inventory {
    pub(crate) accelerators: Vec<Accelerator>,
    pub(crate) devices: Vec<String>,
}

impl Hardware {
    /// Devices that are configured wrongly are left out and reported: the others, and the agent, work.
    pub(crate) fn new(root: PathBuf, configured: Vec<DeviceConfig>) -> (Self, Option<Alarm>) {
        let (devices, alarm) = match ConfiguredDevices::check(&root, configured.clone()) {
            Ok(devices) => (devices, None),
            Err(errors) => {
                let mut names = std::collections::BTreeSet::new();
                let sound = configured.into_iter().filter(|d| {
                    names.insert(d.name.clone()) && ConfiguredDevices::check(&root, vec![d.clone()]).is_ok()
                });
                let sound: Vec<DeviceConfig> = sound.take(cnova_devices::DEVICES_MAX).collect();
                let detail = format!("not offered to workloads: {}", errors.to_string().replace('\n', "; "));
                let alarm = Alarm {
                    code: "devices".into(),
                    detail,
                };
                (empty_if_wrong(&root, sound), Some(alarm))
            }
        };
        (Self { root, devices }, alarm)
    }

    /// Everything that is found, usable or not.
    pub(crate) fn accelerators(&self) -> Vec<FoundAccelerator> {
        discover(&self.root)
    }

    /// The configured devices, with their nodes or why they have none.
    pub(crate) fn devices(&self) -> Vec<(&str, Result<Vec<PathBuf>, DeviceError>)> {
        self.devices.status()
    }

    /// What can be given out now. Reads sysfs and `/dev`.
    pub(crate) fn inventory(&self) -> Inventory {
        let usable = self.accelerators().into_iter().filter(|a| a.unusable.is_none());
        let accelerators = usable.map(|a| Accelerator {
            id: a.id,
            class: a.class.as_str().to_owned(),
            kind: a.kind,
        });
        Inventory {
            accelerators: accelerators.collect(),
            devices: self.devices.available(),
        }
    }

    /// What a workload is given: the devices that it names and the accelerators that were leased to it, with the nodes
    /// that they have now.
    pub(crate) fn for_workload(&self, w: &Workload, leases: &[String]) -> Result<Vec<Device>, HardwareError> {
        let mut given = Vec::with_capacity(w.devices.len() + leases.len());
        for name in &w.devices {
            given.push(Device {
                name: name.clone(),
                kind: String::new(),
                nodes: self.devices.resolve(name)?,
            });
        }
        if leases.is_empty() {
            return Ok(given);
        }
        let mut found = self.accelerators();
        for id in leases {
            let at = found.iter().position(|a| a.id == *id);
            let a = at.map(|at| found.swap_remove(at));
            let a = a.ok_or_else(|| HardwareError::Gone { id: id.clone() })?;
            if let Some(why) = a.unusable {
                let (id, why) = (id.clone(), why.to_string());
                return Err(HardwareError::Unusable { id, why });
            }
            given.push(Device {
                name: a.id,
                kind: a.kind,
                nodes: a.nodes,
            });
        }
        Ok(given)
    }
}

/// Devices that were found sound one by one can only be wrong together if somebody changes `/dev` meanwhile.
fn empty_if_wrong(root: &std::path::Path, sound: Vec<DeviceConfig>) -> ConfiguredDevices {
    for devices in [sound, Vec::new()] {
        if let Ok(checked) = ConfiguredDevices::check(root, devices) {
            return checked;
        }
    }
    unreachable!("no devices are never wrong")
}
