//! The scenarios of boards, on the simulator: every one that it can do, for many seeds.

use cnova_hil_tests::scenario::report::{End, Report};
use cnova_hil_tests::scenario::targets::TargetName;
use cnova_hil_tests::scenario::{ALL, Options, Scenario, run_on};

const SEEDS: u64 = 12;
/// What the simulator has no part for.
const SKIPPED: [&str; 6] = [
    "changed-byte",
    "os-update",
    "update-power-cut",
    "inference-cpu",
    "inference-npu",
    "soak",
];

fn run(seed: u64) -> Report {
    let all: Vec<&Scenario> = ALL.iter().collect();
    let options = Options {
        cuts: 20,
        seed,
        ..Options::default()
    };
    run_on(&TargetName::Simulator(seed), &all, &options)
}

fn run_seeds(from: u64) {
    for seed in from..from + SEEDS / 2 {
        for outcome in run(seed).outcomes {
            match outcome.end {
                End::Passed => assert!(!SKIPPED.contains(&outcome.name), "{} is not skipped", outcome.name),
                End::Skipped(why) => assert!(SKIPPED.contains(&outcome.name), "{}: {why}", outcome.name),
                End::Failed { why, tail } => panic!("seed {seed}: {}: {why}\n{tail}", outcome.name),
            }
        }
    }
}

#[test]
fn one_half_of_the_seeds() {
    run_seeds(0);
}

#[test]
fn the_other_half() {
    run_seeds(SEEDS / 2);
}

#[test]
fn a_target_that_cannot_be_had_says_why() {
    let all: Vec<&Scenario> = ALL.iter().take(1).collect();
    let nowhere = TargetName::Labgrid("there/is/none.yaml".into());
    let report = run_on(&nowhere, &all, &Options::default());
    assert!(matches!(&report.outcomes[0].end, End::Failed { why, .. } if why.contains("there/is/none.yaml")));
}
