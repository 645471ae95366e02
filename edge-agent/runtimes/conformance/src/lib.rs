//! Does a runtime keep the Runtime Abstraction Layer (`docs/RAL.md`)? A suite that asks the real executable.
//!
//! Two ways to use it, with the same checks:
//! - a runtime written in Rust has a `tests/conformance.rs` with a function that returns a [`Fixture`] and
//!   [`conformance!`]`(fixture);`, which makes one `#[test]` of each check;
//! - any other runs `cnova-ral-conformance --runtime EXE --fixtures DIR`, where `DIR/fixtures.json` holds the same.
//!
//! The author of a runtime says for each [`Behaviour`] which spec makes the runtime show it, or why it cannot:
//!
//! ```no_run
//! use cnova_ral_conformance::{Behaviour, Case, Fixture, conformance};
//!
//! fn fixture() -> Fixture {
//!     let fixture = Fixture::new("/usr/lib/cnova/runtimes/cnova-runtime-mine", "mine").expect("a folder for artifacts");
//!     let sleeper = fixture.artifact("sleeper", b"sleep for ever").expect("an artifact");
//!     let seven = fixture.artifact("seven", b"exit 7").expect("an artifact");
//!     fixture
//!         .case(Behaviour::RunsForever, Case::new(sleeper))
//!         .case(Behaviour::ExitsWith, Case::new(seven).code(7))
//!         .not_applicable(Behaviour::DiesBySignal, "a fault of it is a trap, never a signal")
//!     // ... and so on for all of Behaviour::ALL
//! }
//! conformance!(fixture);
//! # fn main() {}
//! ```

mod bench;
mod checks;
mod fixture;
mod fixture_file;
pub mod guest;
mod proc;
mod verdict;

pub use bench::{Bench, PATIENCE, patience, set_patience};
pub use checks::{CHECKS, Check};
pub use fixture::{Behaviour, Case, Fixture, sha256, spec_of};
pub use fixture_file::{FIXTURES_FILE, FixtureError};
pub use verdict::{Stop, Verdict};

/// How much longer everything takes in a guest, which is emulated.
const SLOWER_IN_GUEST: u32 = 4;

/// Runs the named check as a test: panics with what went wrong, and says on standard error what was left out and why.
///
/// # Panics
/// If the check fails or is not one of [`CHECKS`].
pub fn run_as_test(name: &str, fixture: &Fixture) {
    let Some(check) = CHECKS.iter().find(|check| check.name == name) else {
        panic!("there is no check `{name}`");
    };
    if std::env::var_os(guest::INSIDE).is_some() {
        set_patience(PATIENCE * SLOWER_IN_GUEST);
    }
    match check.run(fixture) {
        Ok(()) => {}
        Err(Stop::NotApplicable(reason)) => eprintln!("not applicable: {reason}"),
        Err(Stop::Skipped(reason)) => eprintln!("skipped: {reason}"),
        Err(Stop::Failed(reason)) => panic!("{name}: {reason}"),
    }
}

/// Makes a module `conformance` with one `#[test]` for each check, run against what the given function
/// (`fn() -> Fixture`) returns.
#[macro_export]
macro_rules! conformance {
    ($fixture:ident) => {
        $crate::with_check_names!(conformance_tests, $fixture);
    };
}

/// Part of [`conformance!`].
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($fixture:ident; $($name:ident)*) => {
        mod conformance {
            $(
                #[test]
                fn $name() {
                    $crate::run_as_test(stringify!($name), &super::$fixture());
                }
            )*
        }
    };
}
