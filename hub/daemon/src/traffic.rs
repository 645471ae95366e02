//! Counters that `/metrics` shows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What happened since the start.
        #[derive(Debug, Default)]
        pub struct Traffic {
            $($(#[$doc])* pub $name: Counter,)*
            /// On while the store cannot be written.
            pub outage: Flag,
        }
    };
}

counters! {
    /// Payload bytes that children sent.
    bytes_in,
    /// Payload bytes sent to children.
    bytes_out,
    /// Messages that children sent.
    messages_in,
    /// Messages sent to children.
    messages_out,
    /// Messages that could not be sent; they are repeated by whoever needs them.
    messages_unsent,
    /// Twins signed.
    twins_signed,
    /// Peers turned away at the MQTT port.
    peers_refused,
    /// Requests to the API.
    requests,
    /// Times that the store could not be written and the core was built anew.
    rebuilds,
}

/// A number that only goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// On or off.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// Turns it.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
