//! Power and heat: what the kernel knows of supplies, batteries and temperatures, and what level follows from it.

mod level;
mod reading;

pub use level::{Band, PowerLevel, PowerVerdict, ThresholdError, Thresholds, UNDERVOLTAGE_READINGS, level};
pub use reading::{PowerReading, Supply, Zone};
