//! How much goes wrong in the first half of a run. Every number is a probability in thousandths.

/// Fault rates.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// A message is lost.
    pub drop: u32,
    /// A message comes twice.
    pub duplicate: u32,
    /// A message is delayed so that later ones overtake it.
    pub reorder: u32,
    /// One byte of a message is changed.
    pub corrupt: u32,
    /// A process dies just before a commit.
    pub crash_before: u32,
    /// A process dies just after a commit, before the effects that follow it.
    pub crash_after: u32,
    /// A commit fails (the disk is full); the core is made anew from the store.
    pub disk_full: u32,
    /// A workload dies.
    pub workload_dies: u32,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Faults = Faults {
        drop: 0,
        duplicate: 0,
        reorder: 0,
        corrupt: 0,
        crash_before: 0,
        crash_after: 0,
        disk_full: 0,
        workload_dies: 0,
    };

    /// A mix drawn for one seed: some runs suffer mostly from one thing, some from everything.
    #[must_use]
    pub fn draw(rng: &mut fastrand::Rng) -> Self {
        let mut rate = |most: u32| if rng.bool() { rng.u32(0..=most) } else { 0 };
        Faults {
            drop: rate(200),
            duplicate: rate(200),
            reorder: rate(300),
            corrupt: rate(100),
            crash_before: rate(30),
            crash_after: rate(30),
            disk_full: rate(20),
            workload_dies: rate(300),
        }
    }
}

/// True in `thousandths` of all calls.
pub fn happens(rng: &mut fastrand::Rng, thousandths: u32) -> bool {
    thousandths > 0 && rng.u32(0..1000) < thousandths
}
