//! The whole line in virtual time: a thousand seeds, each with its own misfortunes.

use cnova_agent_core::intake::planted;
use cnova_hil_tests::sim;

const SEEDS_PER_TEST: u64 = 125;

fn run_seeds(block: u64) {
    for seed in block * SEEDS_PER_TEST..(block + 1) * SEEDS_PER_TEST {
        if let Err(violation) = sim::run(seed) {
            panic!("{violation}\nto see it again: cnova-hil sim --from {seed} --seeds 1 --trace 100000");
        }
    }
}

// Eight tests, so that they run on all cores.
macro_rules! seeds {
    ($($name:ident: $block:literal),*) => { $(#[test] fn $name() { run_seeds($block) })* };
}

seeds! {
    seeds_0_to_124: 0, seeds_125_to_249: 1, seeds_250_to_374: 2, seeds_375_to_499: 3,
    seeds_500_to_624: 4, seeds_625_to_749: 5, seeds_750_to_874: 6, seeds_875_to_999: 7
}

fn run_delegated(block: u64) {
    const SEEDS: u64 = 50;
    for seed in block * SEEDS..(block + 1) * SEEDS {
        if let Err(violation) = sim::run_delegated(seed) {
            panic!("{violation}");
        }
    }
}

// While the hub is away a gateway appraises: two hundred seeds, in four tests.
macro_rules! delegated {
    ($($name:ident: $block:literal),*) => { $(#[test] fn $name() { run_delegated($block) })* };
}

delegated! { delegated_0_to_49: 0, delegated_50_to_99: 1, delegated_100_to_149: 2, delegated_150_to_199: 3 }

#[test]
fn the_same_seed_is_the_same_run() {
    let (a, b) = (sim::run(4711).unwrap(), sim::run(4711).unwrap());
    assert_eq!(a, b);
    assert_ne!(a.fingerprint, sim::run(4712).unwrap().fingerprint);
}

#[test]
fn a_planted_bug_is_found() {
    planted::take_older_twins(true);
    let found = (0..200).find_map(|seed| sim::run(seed).err());
    planted::take_older_twins(false);
    let violation = found.expect("agents that take older twins were not noticed in 200 seeds");
    assert!(
        violation.what.contains("went back"),
        "found something else: {violation}"
    );
}
