//! How long it takes from the bytes of an object to an attached program, and what it takes, beside `bpftool prog load`
//! in the same run. Not a test of anything: `cargo test --profile fast -p cnova-runtime-ebpf --test measure --
//! --ignored --nocapture` prints the figures.
#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking, its helpers too")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cnova_ral::{Spec, spawn, write_spec};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const ROUNDS: usize = 40;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Peak memory of a child until its end, in kB. `Child::wait` would not say.
fn peak_kilobytes(child: &Child) -> i64 {
    // SAFETY: plain numbers, and structures that live through the call.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let mut status = 0;
        libc::wait4(i32::try_from(child.id()).unwrap(), &raw mut status, 0, &raw mut usage);
        assert_eq!(status, 0, "bpftool failed");
        usage.ru_maxrss
    }
}

fn field(pid: u32, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn run_ours(dir: &Path, spec: &Spec) -> (f64, [u64; 3]) {
    write_spec(dir, spec).unwrap();
    let start = Instant::now();
    let mut child = spawn(Path::new(env!("CARGO_BIN_EXE_cnova-runtime-ebpf")), dir).unwrap();
    while !dir.join("state.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "{:?}", cnova_ral::read_exit(dir));
        std::thread::sleep(Duration::from_micros(50));
    }
    let took = start.elapsed().as_secs_f64() * 1e3;
    let memory = [
        field(child.id(), "smaps_rollup", "Pss:"),
        field(child.id(), "smaps_rollup", "Private_Dirty:"),
        field(child.id(), "status", "VmHWM:"),
    ];
    cnova_ral::Client::connect(dir).unwrap().stop(None).unwrap();
    child.wait().unwrap();
    (took, memory)
}

fn run_bpftool(object: &Path, pins: &Path) -> (f64, i64) {
    let pin = pins.join("program");
    let start = Instant::now();
    #[expect(clippy::zombie_processes, reason = "it is waited for below, by another call")]
    let child = Command::new("bpftool")
        .args(["prog", "load"])
        .args([object, &pin])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let peak = peak_kilobytes(&child);
    let took = start.elapsed().as_secs_f64() * 1e3;
    fs::remove_file(pin).unwrap();
    (took, peak)
}

#[test]
#[ignore = "a measurement"]
fn from_bytes_to_attached_beside_bpftool() {
    let home = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../examples/fieldbus-watch/build.sh");
    assert!(
        Command::new(script)
            .arg(home.path())
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let object = home.path().join("fieldbus_watch.o");
    let digest = ring::digest::digest(&ring::digest::SHA256, &fs::read(&object).unwrap());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let spec: Spec = serde_json::from_value(serde_json::json!({
        "ral": 1, "workload": "measured", "artifact": object, "digest": format!("sha256:{hex}"),
        "settings": {"programs": [{"name": "fieldbus_watch", "kind": "socket-filter", "attach": "lo"}], "log": "events"},
    }))
    .unwrap();
    let pins = home.path().join("bpf");
    fs::create_dir(&pins).unwrap();
    mount("bpf", &pins, "bpf", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
    let (mut ours, mut theirs, mut memory, mut peak) = (Vec::new(), Vec::new(), [0; 3], 0);
    for _ in 0..ROUNDS {
        let (took, now) = run_ours(&home.path().join("state"), &spec);
        ours.push(took);
        memory = now;
        let (took, now) = run_bpftool(&object, &pins);
        theirs.push(took);
        peak = now;
    }
    unmount(&pins, UnmountFlags::DETACH).unwrap();
    let (ours, theirs) = (median(ours), median(theirs));
    eprintln!(
        "start of the runtime to attached: {ours:.2} ms, bpftool prog load: {theirs:.2} ms, ratio {:.2}",
        ours / theirs
    );
    eprintln!(
        "runtime: PSS {} kB, private dirty {} kB, peak {} kB; bpftool peak {peak} kB",
        memory[0], memory[1], memory[2]
    );
}
