//! What a node has and how it fares: accelerators, configured devices, pressure, power and heat, memory and CPU.
//!
//! Everything is read from sysfs, procfs and `/dev` below a `root`, which is `/` but for tests. Nothing here keeps
//! state, starts anything or opens a device: a device node is only looked at, because opening some of them (a watchdog,
//! a serial port with modem lines) already has an effect. What cannot be read is left out or is an error that says what
//! to do; no content makes these functions panic, and each file and folder is read up to a limit.

mod accelerators;
mod capacity;
mod cgroup;
mod configured;
mod glob;
mod power;
mod pressure;
mod tree;

pub use accelerators::{ACCELERATORS_MAX, AcceleratorClass, FoundAccelerator, PciId, Unusable, discover};
pub use capacity::{
    CPU_MILLIS_UNKNOWN, Capacity, CapacityError, Configured, RESERVE_MAX, RESERVE_MIN, available_memory,
    available_memory_in, measure, measure_in, reserve,
};
pub use cgroup::{Controller, Groups};
pub use configured::{
    ConfiguredDevices, DEVICE_NODES_MAX, DEVICE_PATTERNS_MAX, DEVICES_MAX, DeviceConfig, DeviceError, DeviceErrors,
};
pub use power::{
    Band, PowerLevel, PowerReading, PowerVerdict, Supply, ThresholdError, Thresholds, UNDERVOLTAGE_READINGS, Zone,
    level,
};
pub use pressure::{Average, Pressure, PressureError, Stall, StallKind, Trigger};
