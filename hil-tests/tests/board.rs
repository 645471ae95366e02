//! The image of a board, from flashing to working alone. `make test-board` builds what it needs and runs it: it takes
//! minutes and Debian's packages, so that `make test` leaves it out.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod enrolment_support;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cnova_hil_tests::board::machine::Machine;
use cnova_hil_tests::board::{Board, BoardError, Parts};
use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use enrolment_support::{AGENT, HUB, Plant};
use serde_json::Value;

/// What a machine that resets itself may take to do so.
const RESET: Duration = Duration::from_secs(240);
/// Where a guest sees the loopback of this machine.
const HOST: &str = "10.0.2.2";
/// The NV index of a P-384 endorsement key's certificate (TCG EK Credential Profile, section 2.2.1.4).
const EK_CERTIFICATE: &str = "0x01c00016";

/// `(module (func (export "_start") (loop (br 0))))`: it runs until it is ended.
const WASM: &[u8] =
    b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x09\x01\x07\0\x03\x40\x0c\0\x0b\x0b";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A hub that knows the board's TPM, so that nothing secret is in the image.
fn plant(maker: &Maker, chip: &Swtpm) -> Plant {
    let mut plant = Plant::new("", &[maker]);
    plant.let_it_compile();
    plant.start(HUB);
    let certificate = plant.at("ek.der");
    let read = chip.tool("tpm2_nvread").arg(EK_CERTIFICATE).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    fs::write(&certificate, read.stdout).unwrap();
    plant.cnova(&[
        "enroll",
        "ek",
        "--name",
        AGENT,
        "--site",
        "plant-7/line-2/plc-1",
        "--certificate",
        &certificate,
    ]);
    plant
}

/// The image for this plant.
fn image(machine: &Machine, plant: &Plant) -> PathBuf {
    let config = plant.write(
        "board/agent.toml",
        format!(
            "state_dir = \"/var/lib/cnova\"\nruntime_dir = \"/usr/lib/cnova/runtimes\"\n\
             [parent]\nnode = \"{HUB}\"\naddress = \"{HOST}:{}\"\n[runtime]\ncgroup_parent = \"cnova.slice/workloads\"\n\
             [identity]\nroot = \"tpm\"\ntcti = \"device:/dev/tpmrm0\"\ncertificate = \"/var/lib/cnova/node.pem\"\n\
             trust_bundle = \"/etc/cnova/trust-bundle.cose\"\n[enrolment]\nendpoints = [\"{HOST}:{}\"]\n",
            plant.port(HUB),
            plant.port("door-hub-1"),
        )
        .as_bytes(),
    );
    let out = plant.at("board/image");
    let built = Command::new(repository().join("firmware-images/build"))
        .arg(&machine.name)
        .arg("--bin")
        .arg(machine.programs(plant.programs()))
        .args([
            "--trust-bundle",
            &plant.at("trust/trust-bundle.cose"),
            "--config",
            &config,
            "--out",
            &out,
            "--console",
        ])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Path::new(&out).join("disk.img")
}

fn apply(plant: &Plant) {
    plant.write("app/w.wasm", WASM);
    let manifest = plant.write(
        "app/app.yaml",
        b"apiVersion: cnova/v1\nkind: Application\nmetadata: {name: app}\nworkloads:\n\
          - {name: w, runtime: wasm, artifact: {file: w.wasm}, resources: {memory: 16MiB}, placement: {trust: attested}}\n",
    );
    plant.cnova(&["apply", &manifest]);
}

fn runs_by_the_hub(plant: &Plant) -> bool {
    let all: Value = serde_json::from_str(&plant.cnova(&["get", "workloads", "-o", "json"])).unwrap();
    let mut all = all.as_array().unwrap().iter();
    all.any(|w| w["workload"] == "w" && w["state"] == "running")
}

/// Waits until the board itself says that the workload runs.
fn wait_running(board: &mut Board) -> Result<(), BoardError> {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let status = board.run("cnova-agent status")?;
        if status.contains("app/w") && status.contains("running") {
            return Ok(());
        }
        assert!(
            Instant::now() < until,
            "{status}\n{}",
            board.run("journalctl -u cnova-agent -n 40 --no-pager")?
        );
    }
}

fn number(board: &mut Board, file: &str) -> u64 {
    board.run(&format!("cat {file}")).unwrap().trim().parse().unwrap()
}

#[test]
#[ignore = "builds an image: `make test-board` runs it"]
fn an_image_enrols_by_its_tpm_is_attested_and_works_alone() {
    let machine = Machine::chosen().unwrap();
    let maker = Maker::new();
    let Some(mut chip) = Swtpm::start_by(&maker, Some(EkKind::P384)) else {
        return;
    };
    let mut plant = plant(&maker, &chip);
    let folder = tempfile::tempdir().unwrap();
    let parts = match Parts::flash(&machine, &image(&machine, &plant), folder.path()) {
        Err(BoardError::Missing(why)) => return eprintln!("SKIPPED: {why}"),
        parts => parts.unwrap(),
    };
    let socket = chip.serve_machine();
    let begin = Instant::now();
    let mut board = parts.power_on(&socket).unwrap();
    board.wait_booted().unwrap();
    eprintln!("power on to shell: {:.1} s", begin.elapsed().as_secs_f64());
    plant.wait("the board is enrolled and appraised", |p| {
        p.trust_of(AGENT).as_deref() == Some("warning")
    });
    plant.cnova(&["reference", "add", "image", "--from-node", AGENT]);
    plant.wait("the board is attested", |p| {
        p.trust_of(AGENT).as_deref() == Some("affirming")
    });
    apply(&plant);
    plant.wait("the workload runs", runs_by_the_hub);
    wait_running(&mut board).unwrap();

    // The boot was good, and is not counted any more.
    let until = Instant::now() + Duration::from_secs(120);
    while !board.run("ls /efi/EFI/Linux").unwrap().contains("cnova-a.efi") {
        assert!(
            Instant::now() < until,
            "{}",
            board.run("systemctl list-jobs; ls /efi/EFI/Linux").unwrap()
        );
    }
    let budget = number(&mut board, "/sys/fs/cgroup/cnova.slice/memory.max");
    let allowed = machine.memory.agent;
    assert_eq!(budget, allowed << 20);
    let used = number(&mut board, "/sys/fs/cgroup/cnova.slice/memory.current");
    let peak = board.run("cat /sys/fs/cgroup/cnova.slice/memory.peak").unwrap();
    eprintln!(
        "agent and runtimes: {} MiB now, peak {} bytes, of {allowed} MiB",
        used >> 20,
        peak.trim()
    );

    // The hub goes, the machine starts again: everything is back without anybody.
    plant.kill(HUB);
    board.send("systemctl reboot").unwrap();
    board.wait_off(RESET).unwrap();
    let socket = chip.serve_machine();
    let begin = Instant::now();
    let mut board = parts.power_on(&socket).unwrap();
    board.wait_booted().unwrap();
    wait_running(&mut board).unwrap();
    eprintln!(
        "power on to the workload running, offline: {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    board.cut_power();

    // One bit of the root: nothing of it is used.
    let mut disk = File::options().read(true).write(true).open(&parts.disk).unwrap();
    let mut byte = [0];
    // Its superblock, which is read first.
    disk.seek(SeekFrom::Start(machine.root_a() + 20)).unwrap();
    disk.read_exact(&mut byte).unwrap();
    disk.seek(SeekFrom::Start(machine.root_a() + 20)).unwrap();
    disk.write_all(&[byte[0] ^ 1]).unwrap();
    drop(disk);
    let socket = chip.serve_machine();
    let mut board = parts.power_on(&socket).unwrap();
    board.wait_off(RESET).unwrap();
    let said = board.said();
    assert!(said.contains("dm-verity device corrupted"), "{said}");
}

/// How often the power is cut, and the seed of when.
fn cuts() -> (usize, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("CNOVA_CUTS_SEED").unwrap_or_else(|| fastrand::u64(..));
    (number("CNOVA_CUTS").map_or(50, |n| n as usize), seed)
}

/// Something that changes the twin and the ledger again and again.
fn apply_version(plant: &Plant, version: usize) {
    let manifest = plant.write(
        "app/app.yaml",
        format!(
            "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: app}}\nworkloads:\n\
             - {{name: w, runtime: wasm, artifact: {{file: w.wasm}}, env: {{VERSION: \"{version}\"}}, resources: {{memory: 16MiB}}}}\n"
        )
        .as_bytes(),
    );
    plant.cnova(&["apply", &manifest]);
}

#[test]
#[ignore = "builds an image and takes an hour: `make test-power-cuts` runs it"]
fn power_cuts_at_any_time_lose_nothing() {
    let machine = Machine::chosen().unwrap();
    let maker = Maker::new();
    let Some(mut chip) = Swtpm::start_by(&maker, Some(EkKind::P384)) else {
        return;
    };
    let plant = plant(&maker, &chip);
    let folder = tempfile::tempdir().unwrap();
    let parts = match Parts::flash(&machine, &image(&machine, &plant), folder.path()) {
        Err(BoardError::Missing(why)) => return eprintln!("SKIPPED: {why}"),
        parts => parts.unwrap(),
    };
    let (cuts, seed) = cuts();
    eprintln!("{cuts} cuts, CNOVA_CUTS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let socket = chip.serve_machine();
    let begin = Instant::now();
    let mut board = parts.power_on(&socket).unwrap();
    board.wait_booted().unwrap();
    plant.wait("the board is enrolled", |p| p.trust_of(AGENT).is_some());
    plant.write("app/w.wasm", WASM);
    apply_version(&plant, 0);
    plant.wait("the workload runs", runs_by_the_hub);
    // Between the firmware's first instruction and some deploys.
    let longest = begin.elapsed().as_secs_f64() * 1.5;
    for cut in 1..=cuts {
        apply_version(&plant, cut);
        std::thread::sleep(Duration::from_secs_f64(random.f64() * longest));
        let version = cut * 1000;
        if random.bool() {
            // In the middle of a deploy.
            apply_version(&plant, version);
            std::thread::sleep(Duration::from_millis(random.u64(..500)));
        }
        board.cut_power();
        let socket = chip.serve_machine();
        board = parts.power_on(&socket).unwrap();
        if cut % 10 == 0 || cut == cuts {
            board.wait_booted().unwrap();
            wait_running(&mut board).unwrap();
            let log = board.run("journalctl -b --no-pager -u cnova-agent").unwrap();
            assert!(
                !log.contains("store-set-aside"),
                "after {cut} cuts the ledger was damaged:\n{log}"
            );
            eprintln!("{cut} cuts, {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    plant.wait("the hub hears of it", runs_by_the_hub);
}
