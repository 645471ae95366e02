//! Messages and completions in flight, in order of their time.

use std::collections::BTreeMap;

use cnova_shared::ids::NodeId;
use cnova_shared::topics::Kind;

use super::faults::{Faults, happens};

/// Something that will happen.
#[derive(Clone, Debug)]
pub enum Arrival {
    /// A message arrives, if the link it was sent on still stands.
    Message {
        /// The sender.
        from: NodeId,
        /// The receiver.
        to: NodeId,
        /// Its kind.
        kind: Kind,
        /// Its bytes.
        bytes: Vec<u8>,
        /// The life of the link that it was sent on.
        link: u64,
    },
    /// A forged message arrives, whoever sent it.
    Forged {
        /// The receiver.
        to: NodeId,
        /// Its kind.
        kind: Kind,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// An agent's event; stale if the agent has been started anew since `life`.
    Agent {
        /// The agent.
        node: NodeId,
        /// The life of its process that waits for it.
        life: u64,
        /// It.
        event: cnova_agent_core::Event,
    },
    /// A gateway's event; stale as above.
    Gateway {
        /// The gateway.
        node: NodeId,
        /// The life of its process.
        life: u64,
        /// It.
        event: cnova_gateway_core::Event,
    },
    /// The hub's event; stale as above.
    Hub {
        /// The life of its process.
        life: u64,
        /// It.
        event: cnova_hub_core::Event,
    },
    /// A simulated workload changes: it is up, or it ends.
    Workload {
        /// Its node.
        node: NodeId,
        /// Which.
        id: cnova_shared::ids::WorkloadId,
        /// Which instance.
        attempt: u32,
        /// Whether it comes up; otherwise it ends.
        up: bool,
    },
    /// A process starts again.
    Restart(NodeId),
    /// A link comes back.
    Heal {
        /// Its lower end.
        child: NodeId,
    },
}

/// What is in flight.
#[derive(Debug, Default)]
pub struct Net {
    queue: BTreeMap<(u64, u64), Arrival>,
    next: u64,
}

impl Net {
    /// Schedules something.
    pub fn at(&mut self, time: u64, arrival: Arrival) {
        self.queue.insert((time, self.next), arrival);
        self.next += 1;
    }

    /// When the next thing happens.
    #[must_use]
    pub fn next_time(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((t, _), _)| *t)
    }

    /// The next thing, if it is due.
    pub fn take(&mut self, now: u64) -> Option<Arrival> {
        let ((time, _), _) = self.queue.first_key_value()?;
        if *time > now {
            None
        } else {
            self.queue.pop_first().map(|(_, a)| a)
        }
    }

    /// Sends a message with this run's misfortunes.
    pub fn send(&mut self, now: u64, message: Arrival, faults: &Faults, rng: &mut fastrand::Rng) {
        if happens(rng, faults.drop) {
            return;
        }
        let copies = if happens(rng, faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut message = message.clone();
            if let Arrival::Message { bytes, .. } = &mut message
                && happens(rng, faults.corrupt)
                && !bytes.is_empty()
            {
                let at = rng.usize(0..bytes.len());
                bytes[at] ^= 1 << rng.u32(0..8);
            }
            let late = if happens(rng, faults.reorder) {
                rng.u64(0..2_000)
            } else {
                0
            };
            self.at(now + 1 + rng.u64(0..3) + late, message);
        }
    }
}
