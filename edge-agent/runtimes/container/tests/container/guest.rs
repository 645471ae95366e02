//! All these tests once more on a kernel that has control groups v2 and nothing else, in a virtual machine.

use std::path::Path;

use cnova_ral_conformance::guest;

use crate::support::RUNTIME;

/// Programs of this machine that tests use where they are there.
const OPTIONAL: [&str; 2] = ["/usr/bin/crun", "/usr/sbin/runc"];
/// That it was the right kernel, and that the tests that matter were among those that ran.
const SAID: [&str; 6] = [
    "control groups: cgroup-v2",
    "test limits::what_is_asked_for_is_what_the_kernel_enforces ... ok",
    "test limits::a_fork_loop_stays_within_its_processes ... ok",
    "test limits::a_share_of_the_cpu_is_not_exceeded ... ok",
    "test limits::the_shim_and_its_container_have_groups_of_their_own ... ok",
    "test life::too_much_memory_is_reported_as_such ... ok",
];

#[test]
fn everything_holds_with_control_groups_v2() {
    let mut programs = vec![Path::new(RUNTIME)];
    programs.extend(OPTIONAL.iter().map(Path::new).filter(|path| path.exists()));
    let Some(run) = guest::run_this_suite(&programs) else {
        return;
    };
    for needed in SAID {
        assert!(run.output.contains(needed), "the guest did not say `{needed}`");
    }
}
