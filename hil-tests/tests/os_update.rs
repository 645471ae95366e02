//! The operating system of a virtual board, changed by its twin: written, started, confirmed; power cuts on the way; and the
//! way back from one that is no good. `make test-os-update` builds what it needs and runs it: it takes many minutes and
//! Debian's packages, so that `make test` leaves it out.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod enrolment_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_hil_tests::board::machine::Machine;
use cnova_hil_tests::board::{Board, BoardError, Parts};
use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use enrolment_support::{AGENT, HUB, Plant};
use serde_json::Value;

const BOARD: &str = "qemu-x86_64";
/// Where a guest sees the loopback of this machine.
const HOST: &str = "10.0.2.2";
/// The NV index of a P-384 endorsement key's certificate (TCG EK Credential Profile, section 2.2.1.4).
const EK_CERTIFICATE: &str = "0x01c00016";
/// Emulated, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(600);
/// The shell on the serial line, of images that were built with `--console`.
const PROMPT: &str = "root@cnova:~# ";
/// How long a new system has to become healthy here.
const WITHIN: &str = "240s";
/// The same for one that never does.
const BAD_WITHIN: &str = "45s";

/// `(module (func (export "_start") (loop (br 0))))`: it runs until it is ended.
const WASM: &[u8] =
    b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x09\x01\x07\0\x03\x40\x0c\0\x0b\x0b";

/// A hub that knows the board's TPM and approves boots.
fn plant(maker: &Maker, chip: &Swtpm) -> Plant {
    let mut plant = Plant::new("", &[maker]);
    plant.let_it_compile();
    let path = plant.at("hub-1.toml");
    let key = plant.at("trust/boot-policy.key");
    let text = fs::read_to_string(&path).unwrap();
    let signing = format!("[signing]\nboot_policy = [\"{key}\"]\n");
    fs::write(&path, text.replace("[signing]\n", &signing)).unwrap();
    plant.start(HUB);
    let certificate = plant.at("ek.der");
    let read = chip.tool("tpm2_nvread").arg(EK_CERTIFICATE).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    fs::write(&certificate, read.stdout).unwrap();
    let site = "plant-7/line-2/plc-1";
    plant.cnova(&[
        "enroll",
        "ek",
        "--name",
        AGENT,
        "--site",
        site,
        "--certificate",
        &certificate,
    ]);
    plant
}

/// Builds images for one plant; may go to another thread.
#[derive(Clone)]
struct Builder {
    programs: PathBuf,
    trust_bundle: String,
    config: String,
    out: PathBuf,
}

impl Builder {
    fn of(plant: &Plant) -> Self {
        let config = format!(
            "state_dir = \"/var/lib/cnova\"\nruntime_dir = \"/usr/lib/cnova/runtimes\"\n\
             [parent]\nnode = \"{HUB}\"\naddress = \"{HOST}:{}\"\n[runtime]\ncgroup_parent = \"cnova.slice/workloads\"\n\
             [identity]\nroot = \"tpm\"\ntcti = \"device:/dev/tpmrm0\"\ncertificate = \"/var/lib/cnova/node.pem\"\n\
             trust_bundle = \"/etc/cnova/trust-bundle.cose\"\n[enrolment]\nendpoints = [\"{HOST}:{}\"]\n",
            plant.port(HUB),
            plant.port("door-hub-1"),
        );
        Self {
            programs: plant.programs().to_owned(),
            trust_bundle: plant.at("trust/trust-bundle.cose"),
            config: plant.write("board/agent.toml", config.as_bytes()),
            out: plant.at("board").into(),
        }
    }

    /// A disk, or the bundle of `version`.
    fn build(&self, version: &str, more: &[&str]) -> PathBuf {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let out = self.out.join(version);
        let built = Command::new(repository.join("firmware-images/build"))
            .arg(BOARD)
            .arg("--bin")
            .arg(&self.programs)
            .args(["--trust-bundle", &self.trust_bundle, "--config", &self.config])
            .arg("--out")
            .arg(&out)
            .args(["--version", version, "--console"])
            .args(more)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        eprint!("{}", String::from_utf8_lossy(&built.stdout));
        match more.contains(&"--bundle") {
            true => out.join(format!("system-{version}.cnova")),
            false => out.join("disk.img"),
        }
    }
}

fn manifest(bundle: &Path, tries: u8, within: &str) -> String {
    let folder = bundle.parent().unwrap();
    let file = bundle.file_name().unwrap().to_str().unwrap();
    let text = format!(
        "apiVersion: cnova/v1\nkind: System\nmetadata: {{name: plc-os}}\nbundle: {{file: {file}}}\n\
         slots: {{tries: {tries}}}\nhealth: {{within: {within}, parent: true}}\n"
    );
    let path = folder.join("system.yaml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// What the hub knows of the board's system.
fn system(plant: &Plant) -> Value {
    let all: Value = serde_json::from_str(&plant.cnova(&["get", "systems", "-o", "json"])).unwrap();
    all[0]["nodes"][AGENT].clone()
}

fn state(plant: &Plant) -> String {
    system(plant)["state"].as_str().unwrap_or_default().to_owned()
}

fn runs_by_the_hub(plant: &Plant) -> bool {
    let all: Value = serde_json::from_str(&plant.cnova(&["get", "workloads", "-o", "json"])).unwrap();
    let mut all = all.as_array().unwrap().iter();
    all.any(|w| w["workload"] == "w" && w["state"] == "running")
}

/// Waits for something that the hub is to hear of; the board's own words when it does not.
fn wait(plant: &Plant, board: &Board, what: &str, is_so: impl Fn(&Plant) -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so(plant) {
        let said = board.said();
        let end: Vec<&str> = said.lines().rev().take(40).collect();
        assert!(
            Instant::now() < until,
            "not within {PATIENCE:?}: {what}; the hub says {}; the board: {}",
            system(plant),
            end.into_iter().rev().collect::<Vec<_>>().join("\n")
        );
        sleep(Duration::from_millis(300));
    }
    eprintln!("   {what}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// How often the power is cut, beside once in the middle of the first update; 0 for never.
fn cuts() -> u64 {
    number("CNOVA_CUTS").unwrap_or(2)
}

struct Bench {
    chip: Swtpm,
    parts: Parts,
    begin: Instant,
    boots: u32,
}

impl Bench {
    /// Switches the board on.
    fn power_on(&mut self) -> Board {
        self.boots += 1;
        eprintln!("-- boot {} at {:.0} s", self.boots, self.begin.elapsed().as_secs_f64());
        let socket = self.chip.serve_machine();
        self.parts.power_on(&socket).unwrap()
    }

    fn booted(&mut self) -> Board {
        let mut board = self.power_on();
        board.wait_for(PROMPT, 0, PATIENCE).unwrap();
        board
    }

    /// Waits until it resets itself, and switches it on again.
    fn after_reset(&mut self, mut board: Board) -> Board {
        board.wait_off(PATIENCE).unwrap();
        drop(board);
        self.booted()
    }
}

/// Slot, version and boot, as the agent says once it can be asked: the shell is there before it.
fn slot_of(board: &mut Board) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let said = board.run("cnova-agent status --json").unwrap();
        if let Ok(status) = serde_json::from_str::<Value>(said.trim()) {
            let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            let system = &status["system"];
            let boot = word(&status["own_boot"]);
            if boot != "unknown" {
                return format!("{} {} {boot}", word(&system["s"]), word(&system["v"]));
            }
        }
        assert!(Instant::now() < until, "{said}");
        sleep(Duration::from_secs(1));
    }
}

#[test]
#[ignore = "builds images and starts a board many times: `make test-os-update` runs it"]
#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
fn a_system_is_written_proves_itself_or_is_left() {
    let maker = Maker::new();
    let Some(chip) = Swtpm::start_by(&maker, Some(EkKind::P384)) else {
        return;
    };
    let plant = plant(&maker, &chip);
    let machine = Machine::named(BOARD).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let builder = Builder::of(&plant);
    let parts = match Parts::flash(&machine, &builder.build("1.0.0", &[]), folder.path()) {
        Err(BoardError::Missing(why)) => return eprintln!("SKIPPED: {why}"),
        parts => parts.unwrap(),
    };
    // While the board starts.
    let bundles = {
        let builder = builder.clone();
        std::thread::spawn(move || {
            let good = builder.build("2.0.0", &["--bundle"]);
            // Without the runtime that its workload needs.
            (
                good,
                builder.build("3.0.0", &["--bundle", "--runtimes", "cnova-runtime-ebpf"]),
            )
        })
    };
    let mut bench = Bench {
        chip,
        parts,
        begin: Instant::now(),
        boots: 0,
    };

    // Flashed and attested. The first boot changes the partition table (the state grows), so the second one is what counts.
    let mut board = bench.booted();
    wait(&plant, &board, "the board is enrolled and appraised", |p| {
        p.trust_of(AGENT).as_deref() == Some("warning")
    });
    board.send("systemctl reboot").unwrap();
    let mut board = bench.after_reset(board);
    wait(&plant, &board, "the second boot is appraised", |p| {
        let shown: Value = serde_json::from_str(&p.cnova(&["attest", "show", AGENT, "-o", "json"])).unwrap();
        p.trust_of(AGENT).as_deref() == Some("warning") && shown["launched"].as_array().is_some_and(Vec::is_empty)
    });
    plant.cnova(&["attest", "now", AGENT]);
    sleep(Duration::from_secs(10));
    plant.cnova(&["reference", "add", "image-1", "--from-node", AGENT]);
    wait(&plant, &board, "the board is attested", |p| {
        p.trust_of(AGENT).as_deref() == Some("affirming")
    });
    plant.write("app/w.wasm", WASM);
    let app = plant.write(
        "app/app.yaml",
        b"apiVersion: cnova/v1\nkind: Application\nmetadata: {name: app}\nworkloads:\n\
          - {name: w, runtime: wasm, artifact: {file: w.wasm}, resources: {memory: 16MiB}, placement: {trust: attested}}\n",
    );
    plant.cnova(&["apply", &app]);
    wait(&plant, &board, "the workload runs", runs_by_the_hub);
    assert_eq!(slot_of(&mut board), "a 1.0.0 approved");

    let (good, bad) = bundles.join().unwrap();
    a_damaged_bundle_is_refused(&plant, &good);

    // Nobody has said yet that it may boot that.
    plant.cnova(&["apply", &manifest(&good, 3, WITHIN)]);
    let held = system(&plant);
    assert_eq!(held["asked"], false, "{held}");
    assert!(
        held["reason"]
            .as_str()
            .unwrap()
            .contains("no reference values are published"),
        "{held}"
    );
    let bundle = good.display().to_string();
    plant.cnova(&[
        "reference",
        "add",
        "image-2",
        "--from-node",
        AGENT,
        "--from-bundle",
        &bundle,
    ]);
    wait(&plant, &board, "a quarter of it is written", |p| {
        system(p)["percent"].as_u64() >= Some(20)
    });

    // In the middle of it the power is cut: the system before starts, and it goes on.
    if cuts() > 0 {
        board.cut_power();
        board = bench.booted();
    }
    // It goes on at once, and may be starting anew before anybody can ask it.
    let mut board = bench.after_reset(board);
    wait(&plant, &board, "version 2.0.0 is confirmed", |p| {
        state(p) == "confirmed"
    });
    assert_eq!(slot_of(&mut board), "b 2.0.0 approved");
    wait(&plant, &board, "it is attested", |p| {
        p.trust_of(AGENT).as_deref() == Some("affirming")
    });
    wait(&plant, &board, "its workload runs", runs_by_the_hub);
    let until = Instant::now() + PATIENCE;
    while !board.run("ls /efi/EFI/Linux").unwrap().contains("cnova-b.efi") {
        assert!(
            Instant::now() < until,
            "{}",
            board.run("ls /efi/EFI/Linux; systemctl list-jobs").unwrap()
        );
    }
    assert!(
        board
            .run("cat /etc/os-release")
            .unwrap()
            .contains("IMAGE_VERSION=2.0.0")
    );
    assert!(
        board.run("ls /efi/EFI/Linux").unwrap().contains("cnova-a"),
        "the one before is kept"
    );

    // One that starts and is no good: the loader goes back by itself, and the one before says why.
    let bundle = bad.display().to_string();
    plant.cnova(&[
        "reference",
        "add",
        "image-3",
        "--from-node",
        AGENT,
        "--from-bundle",
        &bundle,
    ]);
    plant.cnova(&["apply", &manifest(&bad, 1, BAD_WITHIN)]);
    let board = bench.after_reset(board);
    let mut board = bench.after_reset(board);
    wait(&plant, &board, "version 3.0.0 is left", |p| state(p) == "rolled-back");
    let left = system(&plant);
    eprintln!("   {left}");
    let why = left["reason"].as_str().unwrap();
    assert!(
        why.contains("app/w") && why.contains("went back to version 2.0.0 in slot b"),
        "{why}"
    );
    assert_eq!(slot_of(&mut board), "b 2.0.0 approved");
    wait(&plant, &board, "the workload runs", runs_by_the_hub);
    cut_anywhere(&plant, &mut bench, board, &builder);
}

/// A bundle in which one byte is another.
fn a_damaged_bundle_is_refused(plant: &Plant, good: &Path) {
    let mut bytes = fs::read(good).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = plant.write("damaged/system-2.0.0.cnova", &bytes);
    let manifest = manifest(Path::new(&damaged), 3, WITHIN);
    let said = plant.cnova_refused(&["apply", &manifest]);
    assert!(
        said.contains("its part Root has the digest") && said.contains("bundle: {file"),
        "{said}"
    );
    eprintln!("   a flipped byte: {}", said.lines().next().unwrap_or_default());
}

/// The power is cut at random moments of another update: whatever boots is one of the two, and in the end the new one runs.
fn cut_anywhere(plant: &Plant, bench: &mut Bench, mut board: Board, builder: &Builder) {
    let cuts = cuts();
    if cuts == 0 {
        return;
    }
    let seed = number("CNOVA_CUTS_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("-- {cuts} cuts, CNOVA_CUTS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let newest = builder.build("4.0.0", &["--bundle"]);
    let bundle = newest.display().to_string();
    plant.cnova(&[
        "reference",
        "add",
        "image-4",
        "--from-node",
        AGENT,
        "--from-bundle",
        &bundle,
    ]);
    plant.cnova(&["apply", &manifest(&newest, 10, WITHIN)]);
    for _ in 0..cuts {
        // From the first chunk to the middle of the reboot.
        let until = Instant::now() + Duration::from_secs_f64(random.f64() * 90.0);
        while Instant::now() < until && board.is_on() {
            sleep(Duration::from_millis(50));
        }
        board.cut_power();
        board = bench.booted();
        let slot = slot_of(&mut board);
        assert!(slot == "b 2.0.0 approved" || slot == "a 4.0.0 approved", "{slot}");
        eprintln!("   after a cut: {slot}");
    }
    let until = Instant::now() + PATIENCE;
    while state(plant) != "confirmed" {
        assert!(Instant::now() < until, "{}", system(plant));
        if !board.is_on() {
            board = bench.booted();
        }
        sleep(Duration::from_millis(500));
    }
    assert_eq!(slot_of(&mut board), "a 4.0.0 approved");
    wait(plant, &board, "the workload runs", runs_by_the_hub);
    wait(plant, &board, "it is attested", |p| {
        p.trust_of(AGENT).as_deref() == Some("affirming")
    });
}
