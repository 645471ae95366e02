//! The suite for all runtimes, with containers of the busybox image. It says nothing where containers cannot run.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::path::Path;

use cnova_oci::testing::{ImageBuilder, LayerBuilder};
use cnova_ral::{Part, Spec, Stream};
use cnova_ral_conformance::{Behaviour, Case, Fixture, conformance, guest};
use serde_json::json;

const HERE: &str = "containers need root and the package busybox-static";

fn fixture() -> Fixture {
    let fixture = Fixture::new(env!("CARGO_BIN_EXE_cnova-runtime-container"), "container").unwrap();
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || !Path::new("/bin/busybox").exists() {
        return Behaviour::ALL
            .into_iter()
            .fold(fixture, |fixture, behaviour| fixture.not_applicable(behaviour, HERE));
    }
    let shell = |script: &str| shell(&fixture, script);
    let many = "i=0; line=$(printf '%0150d' 0); while [ $i -lt 8000 ]; do echo $line; i=$((i+1)); done; echo the last";
    let cases = [
        (
            Behaviour::RunsForever,
            Case::new(shell("trap 'exit 0' TERM; while :; do sleep 0.1; done")),
        ),
        (Behaviour::ExitsWith, Case::new(shell("exit 7")).code(7)),
        (
            Behaviour::Prints,
            Case::new(shell("echo one; echo two >&2; echo three"))
                .line(Stream::Stdout, "one")
                .line(Stream::Stderr, "two")
                .line(Stream::Stdout, "three"),
        ),
        (
            Behaviour::PrintsALot,
            Case::new(shell(many)).line(Stream::Stdout, "the last").code(0),
        ),
        (
            Behaviour::PrintsEnvironment,
            [
                "HOME=/root",
                "HOSTNAME=suite",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PWD=/",
                "SHLVL=1",
            ]
            .into_iter()
            .fold(Case::new(shell("exec env")), |case, name| {
                case.line(Stream::Stdout, name)
            }),
        ),
        (
            Behaviour::IgnoresStop,
            Case::new(shell("trap '' TERM; echo deaf; while :; do sleep 0.1; done")).line(Stream::Stdout, "deaf"),
        ),
        (
            Behaviour::ExceedsMemory,
            Case::new(shell("exec dd if=/dev/zero of=/dev/null bs=512M count=2"))
                .spec(|spec| spec.limits.memory_bytes = 16 << 20),
        ),
        (
            Behaviour::Refused,
            Case::new(fixture.artifact("no-manifest", b"{}").unwrap()),
        ),
    ];
    let fixture = cases
        .into_iter()
        .fold(fixture, |fixture, (behaviour, case)| fixture.case(behaviour, case));
    fixture
        .not_applicable(
            Behaviour::Fails,
            "a fault of a container's program is a signal or an exit code",
        )
        .not_applicable(
            Behaviour::DiesBySignal,
            "busybox has no fault to offer; tests/container/life.rs kills one from outside",
        )
}

/// A script in the image, whose blobs are in the fixture's folder.
fn shell(fixture: &Fixture, script: &str) -> Spec {
    let layer = LayerBuilder::new()
        .busybox(&["sh", "sleep", "echo", "env", "dd", "printf"])
        .unwrap();
    let config = json!({"Entrypoint": ["/bin/sh", "-c"]});
    let image = ImageBuilder::new().layer(layer).config(config).build();
    image.write_blobs(fixture.folder()).unwrap();
    let mut spec = cnova_ral_conformance::spec_of(&fixture.folder().join(image.digest.hex())).unwrap();
    let part = |digest: &cnova_oci::Digest| Part {
        digest: digest.to_string(),
        path: fixture.folder().join(digest.hex()),
    };
    spec.parts = image.parts.iter().map(part).collect();
    spec.cache = Some(fixture.folder().join("cache"));
    spec.args = vec![script.to_owned()];
    spec
}

conformance!(fixture);

/// The same on a kernel that has control groups v2 and nothing else, in a virtual machine.
#[test]
#[ignore = "takes minutes in an emulated machine: make test-cgroup2"]
fn the_suite_holds_with_control_groups_v2() {
    let runtime = Path::new(env!("CARGO_BIN_EXE_cnova-runtime-container"));
    if let Some(run) = guest::run_this_suite(&[runtime]) {
        assert!(!run.output.contains(HERE), "the guest cannot run containers");
    }
}
