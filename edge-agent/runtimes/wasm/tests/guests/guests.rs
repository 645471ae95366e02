//! What a workload may do, what it may not, and what is said about it afterwards.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::Workload;
use cnova_ral::{ExitReason, Handle, Mount, file, read_state};

/// `access denied`, `operation not permitted`, `read-only file system` of WASI preview 1: one of them is a refusal.
const REFUSALS: [i32; 3] = [2, 63, 69];

#[test]
fn arguments_environment_and_exit_code_pass_through() {
    let mut workload = Workload::new(include_str!("wat/echo.wat"));
    workload.spec.args = vec!["one".into(), "two words".into()];
    workload.spec.env = [("VERSION".into(), "2".into())].into();
    let exit = workload.run();
    assert_eq!((exit.reason, exit.code), (ExitReason::Finished, Some(42)));
    // The malformed metric stays a line, and nothing of this process's environment is there.
    assert_eq!(
        workload.log(),
        ["test", "one", "two words", "VERSION=2", "@metric not a number"]
    );
}

#[test]
fn a_component_runs() {
    let mut workload = Workload::new(include_str!("wat/component.wat"));
    let exit = workload.run();
    assert_eq!(
        (exit.reason, exit.code, exit.detail),
        (ExitReason::Finished, Some(0), None)
    );
    assert!(read_state(&workload.dir()).unwrap().is_some());
    let failing = include_str!("wat/component.wat").replace("i32.const 0", "i32.const 1");
    assert_eq!(Workload::new(&failing).run().code, Some(1));
    let trapping = include_str!("wat/component.wat").replace("(i32.const 0)", "unreachable");
    assert_eq!(Workload::new(&trapping).run().reason, ExitReason::Trap);
}

#[test]
fn a_trap_reports_its_backtrace() {
    let exit = Workload::new(include_str!("wat/trap.wat")).run();
    assert_eq!((exit.reason, exit.code, exit.oom), (ExitReason::Trap, None, false));
    let detail = exit.detail.unwrap();
    for expected in ["divide by zero", "divide", "outer", "backtrace"] {
        assert!(detail.contains(expected), "{detail}");
    }
    let exit = Workload::new(include_str!("wat/overflow.wat")).run();
    assert_eq!(exit.reason, ExitReason::Trap);
    let detail = exit.detail.unwrap();
    assert!(
        detail.contains("stack exhausted") && detail.len() <= cnova_ral::DETAIL_BYTES_MAX,
        "{detail}"
    );
}

#[test]
fn the_memory_limit_ends_the_workload() {
    let exit = Workload::new(include_str!("wat/hungry.wat")).run();
    assert_eq!((exit.reason, exit.oom), (ExitReason::Memory, true));
    assert!(exit.detail.unwrap().contains("4194304 allowed"));
    // Already the memory that it begins with may be too much; then it was never running.
    let mut workload = Workload::new("(module (memory (export \"memory\") 100) (func (export \"_start\")))");
    assert_eq!(workload.run().reason, ExitReason::Memory);
    assert!(read_state(&workload.dir()).unwrap().is_none());
}

#[test]
fn a_memory_of_its_own_bound_just_stops_growing() {
    let exit = Workload::new(
        "(module (memory (export \"memory\") 1 2) (func (export \"_start\")
            (if (i32.ne (memory.grow (i32.const 5)) (i32.const -1)) (then unreachable))))",
    )
    .run();
    assert_eq!(exit.reason, ExitReason::Finished);
}

#[test]
fn the_table_limit_ends_the_workload() {
    let mut workload = Workload::new("(module (table 2000 funcref) (memory 1) (func (export \"_start\")))");
    workload.spec.limits.table_elements = 1_000;
    let exit = workload.run();
    assert_eq!(exit.reason, ExitReason::Trap);
    assert!(exit.detail.unwrap().contains("1000 allowed"));
}

#[test]
fn the_wall_limit_ends_the_workload() {
    for guest in [include_str!("wat/spin.wat"), include_str!("wat/sleeper.wat")] {
        let mut workload = Workload::new(guest);
        workload.spec.limits.wall_seconds = Some(0);
        let exit = workload.run();
        assert_eq!(exit.reason, ExitReason::Budget);
        assert!(exit.detail.unwrap().contains("wall_seconds"));
    }
}

#[test]
fn the_log_stays_within_its_bound() {
    let mut workload = Workload::new(include_str!("wat/chatty.wat"));
    let exit = workload.run();
    assert_eq!(exit.reason, ExitReason::Finished);
    let size = |name| fs::metadata(workload.dir().join(name)).map_or(0, |meta| meta.len());
    let both = size(file::LOG) + size(file::LOG_OLD);
    assert!(size(file::LOG_OLD) > 0 && both <= 64 << 10, "{both}");
    assert!(workload.log().iter().all(|line| line.len() == 63));
}

#[test]
fn an_artifact_with_another_digest_is_refused_before_anything_runs() {
    let mut workload = Workload::new(include_str!("wat/echo.wat"));
    let mut bytes = fs::read(&workload.spec.artifact).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&workload.spec.artifact, bytes).unwrap();
    let exit = workload.run();
    assert_eq!((exit.reason, exit.code), (ExitReason::Refused, None));
    assert!(exit.detail.unwrap().contains(&workload.spec.digest));
    assert!(workload.log().is_empty() && read_state(&workload.dir()).unwrap().is_none());
}

#[test]
fn what_is_no_artifact_of_ours_is_refused_with_a_reason() {
    let wasm = wat::parse_str(include_str!("wat/spin.wat")).unwrap();
    let other = cnova_wasm_engine::TARGETS
        .into_iter()
        .find(|target| Some(*target) != cnova_wasm_engine::HOST_TARGET);
    let foreign = cnova_wasm_engine::precompile(other.unwrap(), &wasm).unwrap();
    for (bytes, expected) in [
        (&b""[..], "it is empty"),
        (b"#!/bin/sh\n", "begins with `#!/bin/sh\\n`"),
        (&wasm, "not compiled yet"),
        (&foreign, "compiled for architecture"),
        (&foreign[..foreign.len() / 2], "artifact"),
    ] {
        let exit = Workload::of_artifact(bytes).run();
        assert_eq!(exit.reason, ExitReason::Refused);
        let detail = exit.detail.unwrap();
        assert!(detail.contains(expected), "{detail}");
    }
    let mut missing = Workload::new(include_str!("wat/spin.wat"));
    missing.spec.artifact = missing.home.path().join("nowhere.cwasm");
    let exit = missing.run();
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.unwrap().contains("nowhere.cwasm"));
}

#[test]
fn a_grant_that_cannot_be_kept_is_refused() {
    type Spoil = fn(&mut Workload);
    let cases: [(Spoil, &str); 3] = [
        (|w| w.spec.grants.network = vec!["everything".into()], "everything"),
        (|w| mount(w, "/nonexistent/folder", false), "/nonexistent/folder"),
        (|w| mount(w, "/proc/self/exe", false), "only folders"),
    ];
    for (spoil, expected) in cases {
        let mut workload = Workload::new(include_str!("wat/spin.wat"));
        spoil(&mut workload);
        let exit = workload.run();
        assert_eq!(exit.reason, ExitReason::Refused);
        let detail = exit.detail.unwrap();
        assert!(detail.contains(expected), "{detail}");
    }
}

fn mount(workload: &mut Workload, host: &str, writable: bool) {
    workload.spec.mounts.push(Mount {
        guest: "/data".into(),
        host: host.into(),
        writable,
    });
}

/// Opens `path` in a mounted folder and returns the error number.
fn open(path: &str, how: &str, writable: bool) -> i32 {
    let mut workload = Workload::new(include_str!("wat/files.wat"));
    let folder = workload.home.path().join("given");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("inside"), "x").unwrap();
    fs::write(workload.home.path().join("outside"), "x").unwrap();
    symlink("../outside", folder.join("link")).unwrap();
    symlink("/etc/hostname", folder.join("absolute")).unwrap();
    mount(&mut workload, folder.to_str().unwrap(), writable);
    workload.spec.args = vec![path.into(), how.into()];
    let exit = workload.run();
    assert_eq!(exit.reason, ExitReason::Finished, "{exit:?}");
    if exit.code == Some(0) && how == "w" {
        assert!(folder.join(path).exists());
    }
    exit.code.unwrap()
}

#[test]
fn folders_are_read_only_unless_granted() {
    assert_eq!(open("inside", "r", false), 0);
    assert_eq!(open("new", "w", true), 0);
    for path in ["new", "inside"] {
        let code = open(path, "w", false);
        assert!(REFUSALS.contains(&code), "{path}: {code}");
    }
}

#[test]
fn there_is_no_way_out_of_a_folder() {
    for path in [
        "../outside",
        "link",
        "absolute",
        "/etc/hostname",
        "inside/../../outside",
    ] {
        for writable in [false, true] {
            let code = open(path, "r", writable);
            assert!(code != 0, "{path} was opened");
        }
    }
}

#[test]
fn a_file_that_never_comes_does_not_hold_up_a_stop() {
    let mut workload = Workload::new(include_str!("wat/files.wat"));
    let folder = workload.home.path().join("given");
    fs::create_dir(&folder).unwrap();
    let status = std::process::Command::new("mkfifo")
        .arg(folder.join("pipe"))
        .status()
        .unwrap();
    assert!(status.success());
    mount(&mut workload, folder.to_str().unwrap(), false);
    workload.spec.args = vec!["pipe".into(), "r".into()];
    workload.spec.stop_grace_ms = 3_600_000;
    let state = workload.start_and_wait();
    Handle::open(&state).unwrap().terminate().unwrap();
    assert_eq!(workload.end().1.unwrap().reason, ExitReason::Stopped);
}

#[test]
fn without_a_mount_there_is_no_file_at_all() {
    let mut workload = Workload::new(include_str!("wat/files.wat"));
    workload.spec.args = vec!["etc/hostname".into(), "r".into()];
    assert_eq!(
        workload.run().code,
        Some(8),
        "bad file descriptor: nothing is open but the standard streams"
    );
}
