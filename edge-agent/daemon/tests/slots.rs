//! The slots of a machine that is made of files: what is written where, in which order, and what a loader would then start.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use cnova_agent::system::{BootControl, EntryState, Environment, Loader, Slots, SystemConfig, SystemdBoot, UBoot};
use cnova_agent_core::system::OtherSlot;
use cnova_agent_core::{SystemAction, SystemEvent};
use cnova_shared::ids::Digest;
use cnova_shared::system_bundle::{Header, Part, PartKind, VERSION};
use tempfile::TempDir;

const ROOT_BYTES: usize = 6 << 20;
const BOOT_BYTES: usize = 70_000;
const SLOT_BYTES: u64 = 8 << 20;
const CHUNK: usize = 256 * 1024;
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// A machine that was started from slot a.
struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let this = Self { dir };
        let hash = "ab".repeat(32);
        this.put(
            "proc/cmdline",
            &format!("console=ttyS0 cnova.root=root cnova.hash={hash} ro\n"),
        );
        this.put("proc/sys/kernel/random/boot_id", "boot-1\n");
        this.put(
            "proc/self/mountinfo",
            "22 1 253:0 / / ro,relatime - squashfs /dev/mapper/root ro\n23 22 0:5 / /proc rw - proc proc rw\n\
             24 22 254:1 / /efi rw - vfat /dev/vda1 rw\n",
        );
        this.put(
            "etc/os-release",
            "ID=cnova\nIMAGE_VERSION=1.0\nCNOVA_BOARD=\"board-1\"\n",
        );
        this.put("sys/dev/block/253:0/slaves/vda2/size", "1");
        for (name, label) in [
            ("vda1", "esp"),
            ("vda2", "root-a"),
            ("vda3", "root-b"),
            ("vda4", "state"),
        ] {
            this.put(
                &format!("sys/class/block/{name}/uevent"),
                &format!("DEVNAME={name}\nPARTNAME={label}\n"),
            );
            let device = this.at("dev").join(name);
            fs::create_dir_all(this.at("dev")).unwrap();
            File::create(device).unwrap().set_len(SLOT_BYTES).unwrap();
        }
        this.put("efi/EFI/Linux/cnova-a.efi", "the one that runs");
        fs::create_dir_all(this.at("sys/firmware/efi/efivars")).unwrap();
        fs::create_dir_all(this.at("state")).unwrap();
        this
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn config(&self) -> SystemConfig {
        let flag = self.at("restarted").display().to_string();
        SystemConfig {
            reboot: vec!["/bin/touch".into(), flag],
            ..SystemConfig::default()
        }
    }

    fn slots(&self) -> Slots {
        Slots::find(self.dir.path(), &self.config(), &self.at("state")).unwrap()
    }

    /// One of the loader's variables, where it has been set.
    fn variable(&self, name: &str) -> Option<String> {
        let path = self.at("sys/firmware/efi/efivars").join(format!("{name}-{VENDOR}"));
        let bytes = fs::read(path).ok()?;
        assert_eq!(bytes[..4], [7, 0, 0, 0], "kept, and for the loader");
        let units = bytes[4..].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
        let text = String::from_utf16(&units.collect::<Vec<u16>>()).unwrap();
        Some(text.strip_suffix('\0').unwrap().to_owned())
    }

    fn entries(&self) -> Vec<String> {
        let list = fs::read_dir(self.at("efi/EFI/Linux")).unwrap();
        let mut names: Vec<String> = list.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

struct Bundle {
    bytes: Vec<u8>,
    header: Header,
    digest: Digest,
}

fn bundle(version: &str, seed: u8) -> Bundle {
    let fill = |n: usize| {
        (0..n)
            .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
            .collect::<Vec<u8>>()
    };
    let (root, boot) = (fill(ROOT_BYTES), fill(BOOT_BYTES));
    let part = |kind, offset: usize, data: &[u8]| Part {
        kind,
        offset: offset as u64,
        size: data.len() as u64,
        digest: Digest::of(data),
    };
    let header = Header {
        v: VERSION,
        compatible: "board-1".into(),
        version: version.into(),
        root_hash: Digest::of(version.as_bytes()),
        parts: vec![
            part(PartKind::Root, 4096, &root),
            part(PartKind::Boot, 4096 + ROOT_BYTES, &boot),
        ],
        measured: BTreeMap::new(),
        loads: Vec::new(),
    };
    let mut bytes = header.to_bytes().unwrap();
    bytes.resize(4096, 0);
    bytes.extend(root);
    bytes.extend(boot);
    let digest = Digest::of(&bytes);
    Bundle { bytes, header, digest }
}

fn open(slots: &Slots, bundle: &Bundle) -> u64 {
    let action = SystemAction::Open {
        bundle: bundle.digest,
        header: Box::new(bundle.header.clone()),
    };
    match slots.perform(action) {
        Some(SystemEvent::Opened { have, .. }) => have,
        other => panic!("{other:?}"),
    }
}

fn write(slots: &Slots, bundle: &Bundle, from: usize, to: usize) -> Option<SystemEvent> {
    for offset in (from..to).step_by(CHUNK) {
        let data = bundle.bytes[offset..(offset + CHUNK).min(to)].to_vec();
        let said = slots.perform(SystemAction::Write {
            bundle: bundle.digest,
            offset: offset as u64,
            data,
        });
        if said.is_some() {
            return said;
        }
    }
    None
}

fn verify(slots: &Slots, bundle: &Bundle) -> Result<(), String> {
    let said = slots.perform(SystemAction::Verify {
        bundle: bundle.digest,
        header: Box::new(bundle.header.clone()),
    });
    match said {
        Some(SystemEvent::Verified { result, .. }) => result,
        other => panic!("{other:?}"),
    }
}

/// Whole in the slot that does not run.
fn staged(slots: &Slots, bundle: &Bundle) {
    open(slots, bundle);
    assert_eq!(write(slots, bundle, 0, bundle.bytes.len()), None);
    assert_eq!(verify(slots, bundle), Ok(()));
}

fn start(slots: &Slots, bundle: &Bundle, is_older: bool) -> Option<SystemEvent> {
    slots.perform(SystemAction::Start {
        bundle: bundle.digest,
        header: Box::new(bundle.header.clone()),
        tries: 3,
        is_older,
    })
}

#[test]
fn a_bundle_goes_into_the_slot_that_does_not_run_and_is_started_from_there() {
    let machine = Machine::new();
    let running_root = fs::read(machine.at("dev/vda2")).unwrap();
    let (slots, new) = (machine.slots(), bundle("2.0", 1));
    let running = slots.running();
    assert_eq!(
        (running.slot.as_str(), running.version.as_str(), running.other),
        ("a", "1.0", OtherSlot::None)
    );
    assert_eq!(running.compatible, "board-1");
    assert_eq!(open(&slots, &new), 0);
    assert_eq!(write(&slots, &new, 0, new.bytes.len()), None);
    assert_eq!(verify(&slots, &new), Ok(()));
    // Whole, and nothing that a loader would take.
    assert_eq!(machine.entries(), ["cnova-a.efi", "cnova-b.new"]);
    assert_eq!(start(&slots, &new, false), None);
    assert_eq!(machine.entries(), ["cnova-a.efi", "cnova-b+3.efi"]);
    assert!(machine.at("restarted").exists());
    assert_eq!(slots.running().other, OtherSlot::Untried);
    // Again, as after a crash of the agent.
    assert_eq!(start(&slots, &new, false), None);
    assert_eq!(machine.entries(), ["cnova-a.efi", "cnova-b+3.efi"]);
    let written = fs::read(machine.at("dev/vda3")).unwrap();
    assert_eq!(written[..ROOT_BYTES], new.bytes[4096..4096 + ROOT_BYTES]);
    assert_eq!(fs::read(machine.at("dev/vda2")).unwrap(), running_root);
    let boot = fs::read(machine.at("efi/EFI/Linux/cnova-b+3.efi")).unwrap();
    assert_eq!(boot[..], new.bytes[4096 + ROOT_BYTES..]);
}

#[test]
fn what_was_startable_there_is_not_any_more_before_the_first_byte_is_written() {
    let machine = Machine::new();
    machine.put("efi/EFI/Linux/cnova-b.efi", "the one before");
    let (slots, new) = (machine.slots(), bundle("2.0", 1));
    assert_eq!(slots.running().other, OtherSlot::Tried);
    open(&slots, &new);
    assert_eq!(machine.entries(), ["cnova-a.efi", "cnova-b.new"]);
    assert!(fs::read(machine.at("dev/vda3")).unwrap().iter().all(|b| *b == 0));
    let _ = slots.perform(SystemAction::Discard);
    assert_eq!(machine.entries(), ["cnova-a.efi"]);
}

#[test]
fn a_power_cut_goes_on_where_everything_is_on_the_disk() {
    let machine = Machine::new();
    let new = bundle("2.0", 1);
    let half = 5 << 20;
    {
        let slots = machine.slots();
        open(&slots, &new);
        assert_eq!(write(&slots, &new, 0, half), None);
    }
    let slots = machine.slots();
    let have = open(&slots, &new);
    assert!(have > 0 && have <= half as u64, "{have}");
    // What was written behind that may be lost.
    let mut device = File::options().write(true).open(machine.at("dev/vda3")).unwrap();
    device.seek(SeekFrom::Start(have - 4096)).unwrap();
    device
        .write_all(&vec![0xff; half - usize::try_from(have).unwrap()])
        .unwrap();
    drop(device);
    assert_eq!(
        write(&slots, &new, usize::try_from(have).unwrap(), new.bytes.len()),
        None
    );
    assert_eq!(verify(&slots, &new), Ok(()));
    // Another bundle begins from its beginning.
    let slots = machine.slots();
    assert_eq!(open(&slots, &bundle("3.0", 2)), 0);
}

#[test]
fn damage_is_found_when_it_is_read_back_and_again_before_the_start() {
    let machine = Machine::new();
    let (slots, new) = (machine.slots(), bundle("2.0", 1));
    open(&slots, &new);
    write(&slots, &new, 0, new.bytes.len());
    let flip = |path: PathBuf, at: u64| {
        let mut file = File::options().write(true).open(path).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[0]).unwrap();
    };
    flip(machine.at("dev/vda3"), 12_345);
    let said = verify(&slots, &new).unwrap_err();
    assert!(
        said.contains("the root in slot b has the digest") && said.contains("which its header says"),
        "{said}"
    );
    let _ = slots.perform(SystemAction::Discard);
    assert_eq!(open(&slots, &new), 0);
    write(&slots, &new, 0, new.bytes.len());
    assert_eq!(verify(&slots, &new), Ok(()));
    flip(machine.at("efi/EFI/Linux/cnova-b.new"), 77);
    let said = start(&slots, &new, false);
    assert!(
        matches!(said, Some(SystemEvent::Verified { result: Err(_), .. })),
        "{said:?}"
    );
    assert!(!machine.at("restarted").exists());
    assert_eq!(slots.running().other, OtherSlot::None);
}

#[test]
fn what_does_not_fit_or_does_not_continue_is_refused_with_words() {
    let machine = Machine::new();
    let (slots, new) = (machine.slots(), bundle("2.0", 1));
    File::options()
        .write(true)
        .open(machine.at("dev/vda3"))
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    let said = slots.perform(SystemAction::Open {
        bundle: new.digest,
        header: Box::new(new.header.clone()),
    });
    let Some(SystemEvent::NoRoom { why, .. }) = said else {
        panic!("{said:?}")
    };
    assert!(
        why.contains("the root takes 6291456 bytes") && why.contains("room for 4194304"),
        "{why}"
    );
    File::options()
        .write(true)
        .open(machine.at("dev/vda3"))
        .unwrap()
        .set_len(SLOT_BYTES)
        .unwrap();
    open(&slots, &new);
    let said = write(&slots, &new, CHUNK, 2 * CHUNK);
    assert!(matches!(said, Some(SystemEvent::NotWritten { .. })), "{said:?}");
}

#[test]
fn a_machine_that_cannot_change_its_system_says_why() {
    let why = |change: &dyn Fn(&Machine)| {
        let machine = Machine::new();
        change(&machine);
        Slots::find(machine.dir.path(), &machine.config(), &machine.at("state"))
            .unwrap_err()
            .to_string()
    };
    assert!(why(&|m| m.put("proc/cmdline", "quiet")).contains("no cnova.hash="));
    assert!(why(&|m| m.put("etc/os-release", "ID=debian\n")).contains("CNOVA_BOARD="));
    assert!(why(&|m| m.put("sys/class/block/vda3/uevent", "DEVNAME=vda3\n")).contains("root-a and root-b"));
    assert!(why(&|m| fs::remove_dir_all(m.at("efi")).unwrap()).contains("efi is no folder"));
    let on_another_disk = |m: &Machine| {
        fs::remove_dir_all(m.at("sys/dev/block/253:0/slaves")).unwrap();
        m.put("sys/dev/block/253:0/uevent", "DEVNAME=sda1\n");
    };
    assert!(why(&on_another_disk).contains("[\"sda1\"]"));
    let machine = Machine::new();
    let config = SystemConfig {
        loader: Loader::None,
        ..machine.config()
    };
    let said = Slots::find(machine.dir.path(), &config, &machine.at("state"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("\"none\""));
}

#[test]
fn a_good_slot_is_not_counted_and_an_older_version_is_named_to_the_loader() {
    let machine = Machine::new();
    fs::rename(
        machine.at("efi/EFI/Linux/cnova-a.efi"),
        machine.at("efi/EFI/Linux/cnova-a+2-1.efi"),
    )
    .unwrap();
    let (slots, old) = (machine.slots(), bundle("0.9", 3));
    let _ = slots.perform(SystemAction::Confirm);
    assert_eq!(machine.entries(), ["cnova-a.efi"]);
    let _ = slots.perform(SystemAction::Confirm);
    open(&slots, &old);
    write(&slots, &old, 0, old.bytes.len());
    verify(&slots, &old).unwrap();
    assert_eq!(start(&slots, &old, true), None);
    let value = |name| machine.variable(name).unwrap();
    assert_eq!(value("LoaderEntryOneShot"), "cnova-b*");
    // Until its tries are used up, and no longer.
    assert_eq!(value("LoaderEntryDefault"), "cnova-b+[1-9]*");
}

#[test]
fn what_is_good_is_the_default_whatever_the_version_in_the_other_slot() {
    let machine = Machine::new();
    let (slots, new) = (machine.slots(), bundle("2.0", 1));
    let _ = slots.perform(SystemAction::Confirm);
    assert_eq!(machine.variable("LoaderEntryDefault").unwrap(), "cnova-a.efi");
    // The firmware's memory is not written where it says that already.
    let path = machine.at(&format!("sys/firmware/efi/efivars/LoaderEntryDefault-{VENDOR}"));
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let _ = slots.perform(SystemAction::Confirm);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), long_ago);
    // A newer one would not be started any more by itself.
    staged(&slots, &new);
    assert_eq!(start(&slots, &new, false), None);
    assert_eq!(machine.variable("LoaderEntryOneShot").unwrap(), "cnova-b*");
    assert_eq!(machine.variable("LoaderEntryDefault").unwrap(), "cnova-b+[1-9]*");
}

#[test]
fn a_variable_that_the_kernel_guards_is_changed_all_the_same() {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let machine = Machine::new();
    let slots = machine.slots();
    let path = machine.at(&format!("sys/firmware/efi/efivars/LoaderEntryDefault-{VENDOR}"));
    fs::write(&path, "something else").unwrap();
    let file = File::open(&path).unwrap();
    let guarded = ioctl_getflags(&file).and_then(|f| ioctl_setflags(&file, f | IFlags::IMMUTABLE));
    if guarded.is_err() {
        return eprintln!("SKIPPED: needs root and a file system that keeps files immutable");
    }
    assert!(fs::write(&path, "not so").is_err());
    let _ = slots.perform(SystemAction::Confirm);
    let said = machine.variable("LoaderEntryDefault");
    // Or the folder cannot be removed.
    ioctl_setflags(&file, ioctl_getflags(&file).unwrap() - IFlags::IMMUTABLE).unwrap();
    assert_eq!(said.unwrap(), "cnova-a.efi");
}

#[test]
fn without_variables_a_newer_version_is_started_and_an_older_one_is_not() {
    let machine = Machine::new();
    fs::remove_dir_all(machine.at("sys/firmware")).unwrap();
    let (slots, new) = (machine.slots(), bundle("2.0", 1));
    staged(&slots, &new);
    let said = start(&slots, &new, true);
    assert!(
        matches!(&said, Some(SystemEvent::NotStarted { why, .. }) if why.contains("LoaderEntryDefault")),
        "{said:?}"
    );
    assert_eq!(machine.entries(), ["cnova-a.efi", "cnova-b.new"]);
    assert_eq!(start(&slots, &new, false), None);
    assert_eq!(machine.entries(), ["cnova-a.efi", "cnova-b+3.efi"]);
}

#[test]
fn what_is_armed_already_is_armed_again_with_any_number_of_tries() {
    let machine = Machine::new();
    let new = bundle("2.0", 1);
    let failing = SystemConfig {
        reboot: vec!["/bin/false".into()],
        ..machine.config()
    };
    let slots = Slots::find(machine.dir.path(), &failing, &machine.at("state")).unwrap();
    staged(&slots, &new);
    let said = start(&slots, &new, false);
    assert!(matches!(said, Some(SystemEvent::NotRestarted { .. })), "{said:?}");
    let said = slots.perform(SystemAction::Restart);
    assert!(matches!(said, Some(SystemEvent::NotRestarted { .. })), "{said:?}");
    // The loader tried it meanwhile, or the twin says another number now.
    let entry = |name: &str| machine.at("efi/EFI/Linux").join(name);
    fs::rename(entry("cnova-b+3.efi"), entry("cnova-b+4-1.efi")).unwrap();
    let slots = machine.slots();
    assert_eq!(start(&slots, &new, false), None);
    assert_eq!(machine.entries(), ["cnova-a.efi", "cnova-b+3.efi"]);
    // Something else under its name is not.
    fs::write(entry("cnova-b+3.efi"), "something else").unwrap();
    let said = start(&slots, &new, false);
    assert!(
        matches!(said, Some(SystemEvent::Verified { result: Err(_), .. })),
        "{said:?}"
    );
    fs::remove_file(entry("cnova-b+3.efi")).unwrap();
    let said = start(&slots, &new, false);
    assert!(
        matches!(&said, Some(SystemEvent::Verified { result: Err(why), .. }) if why.contains("which is not there")),
        "{said:?}"
    );
}

#[test]
fn boot_files_that_cannot_be_read_are_not_taken_for_none() {
    let machine = Machine::new();
    machine.put("efi/EFI/Linux/cnova-b+0-3.efi", "tried in vain");
    let slots = machine.slots();
    assert_eq!(slots.running().other, OtherSlot::Tried);
    let mounts = fs::read_to_string(machine.at("proc/self/mountinfo")).unwrap();
    let without: Vec<&str> = mounts.lines().filter(|l| !l.contains("/efi")).collect();
    machine.put("proc/self/mountinfo", &without.join("\n"));
    let look = || slots.perform(SystemAction::Look);
    assert_eq!(look(), Some(SystemEvent::OtherSlot(OtherSlot::Unknown)));
    let running = machine.slots().running();
    assert!(running.other == OtherSlot::Unknown && running.is_counted, "{running:?}");
    let new = bundle("2.0", 1);
    let said = slots.perform(SystemAction::Open {
        bundle: new.digest,
        header: Box::new(new.header),
    });
    assert!(
        matches!(&said, Some(SystemEvent::NotWritten { why, .. }) if why.contains("/efi is not mounted")),
        "{said:?}"
    );
    let _ = slots.perform(SystemAction::Discard);
    assert_eq!(machine.entries(), ["cnova-a.efi", "cnova-b+0-3.efi"]);
    // It came after the agent; and then its folder cannot be listed.
    machine.put("proc/self/mountinfo", &mounts);
    assert_eq!(look(), Some(SystemEvent::OtherSlot(OtherSlot::Tried)));
    fs::remove_dir_all(machine.at("efi/EFI/Linux")).unwrap();
    machine.put("efi/EFI/Linux", "no folder");
    assert_eq!(look(), Some(SystemEvent::OtherSlot(OtherSlot::Unknown)));
}

/// The same on FAT itself, where this machine lets us mount one.
#[test]
fn names_on_a_fat_file_system_change_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let (image, mount) = (dir.path().join("esp.img"), dir.path().join("efi"));
    fs::create_dir(&mount).unwrap();
    File::create(&image).unwrap().set_len(34 << 20).unwrap();
    let run = |program: &str, arguments: &[&Path]| {
        let done = Command::new(program).args(arguments).output();
        done.is_ok_and(|d| d.status.success())
    };
    let sbin = |name: &str| format!("/usr/sbin/{name}");
    let made = run(&sbin("mkfs.vfat"), &[&image]);
    if !made || !run("mount", &[Path::new("-o"), Path::new("loop"), &image, &mount]) {
        return eprintln!("SKIPPED: mkfs.vfat or a loop mount is not to be had here (root with loop devices has both)");
    }
    let boot = b"a unified kernel image".repeat(1000);
    let control = SystemdBoot::new(mount.clone(), dir.path().to_owned());
    fs::create_dir_all(mount.join("EFI/Linux")).unwrap();
    fs::write(control.staging("b"), &boot).unwrap();
    let done = control.arm("b", 2, &Digest::of(&boot), false);
    let state = control.state("b").unwrap();
    let confirmed = control.confirm("b").map(|()| control.state("b").unwrap());
    let disarmed = control.disarm("b").map(|()| control.state("b").unwrap());
    assert!(run("umount", &[&mount]));
    done.unwrap();
    assert_eq!(state, EntryState::Counted { left: 2, used: 0 });
    assert_eq!(confirmed.unwrap(), EntryState::Good);
    assert_eq!(disarmed.unwrap(), EntryState::None);
}

/// A redundant environment as U-Boot's tools make it: both copies, the first one in force.
fn environment(dir: &Path, variables: &str) -> Environment {
    let (size, path) = (0x1000, dir.join("uboot.env"));
    let mut data = variables.replace('\n', "\0").into_bytes();
    data.resize(size - 5, 0);
    let sum = |data: &[u8]| {
        !data.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| {
                (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())
            })
        })
    };
    let copy = |flag: u8| [&sum(&data).to_le_bytes()[..], &[flag], &data].concat();
    fs::write(&path, [copy(8), copy(7)].concat()).unwrap();
    Environment {
        path,
        offsets: [0, size as u64],
        size: size as u32,
    }
}

#[test]
fn u_boot_is_told_by_its_environment_of_which_one_copy_is_always_whole() {
    let dir = tempfile::tempdir().unwrap();
    let environment = environment(
        dir.path(),
        "bootdelay=0\nBOOT_ORDER=a b\nBOOT_a_LEFT=3\nBOOT_b_LEFT=3\n",
    );
    let boot = dir.path().join("boot");
    fs::create_dir(&boot).unwrap();
    let control = UBoot::new(boot, environment.clone());
    assert_eq!(control.state("b").unwrap(), EntryState::Good);
    let before = fs::read(&environment.path).unwrap();
    control.disarm("b").unwrap();
    assert_eq!(control.state("b").unwrap(), EntryState::None);
    assert_eq!(control.state("a").unwrap(), EntryState::Good);
    let after = fs::read(&environment.path).unwrap();
    assert_eq!(before[..0x1000], after[..0x1000], "only the older copy is written");
    fs::write(control.staging("b"), b"a FIT image").unwrap();
    assert!(control.arm("b", 2, &Digest::of(b"another"), false).is_err());
    control.arm("b", 2, &Digest::of(b"a FIT image"), false).unwrap();
    assert_eq!(control.state("b").unwrap(), EntryState::Counted { left: 2, used: 0 });
    // The write of the next change is cut off: the copy before it counts.
    let mut cut = fs::read(&environment.path).unwrap();
    control.confirm("b").unwrap();
    assert_eq!(control.state("b").unwrap(), EntryState::Good);
    let newer = fs::read(&environment.path).unwrap();
    let at = (0..cut.len()).find(|i| cut[*i] != newer[*i]).unwrap();
    cut[at] = newer[at];
    fs::write(&environment.path, &cut).unwrap();
    assert_ne!(control.state("b").unwrap(), EntryState::Good);
    // Neither is whole.
    fs::write(&environment.path, vec![0; 0x2000]).unwrap();
    let said = control.disarm("b").unwrap_err().to_string();
    assert!(said.contains("neither copy"), "{said}");
}

/// A board whose environment nobody has saved yet: its script's own order is not in it.
#[test]
fn u_boot_is_never_left_without_the_slot_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let boot = dir.path().join("boot");
    fs::create_dir(&boot).unwrap();
    for (before, left) in [
        ("bootdelay=0\n", "3"),
        ("BOOT_ORDER=b\nBOOT_a_LEFT=0\n", "3"),
        ("BOOT_ORDER=b a\nBOOT_a_LEFT=2\n", "2"),
    ] {
        let environment = environment(dir.path(), before);
        let control = UBoot::new(boot.clone(), environment.clone());
        let has = |words: &[&str]| {
            let bytes = fs::read(&environment.path).unwrap();
            let newest = if bytes[4] > bytes[0x1004] {
                &bytes[..0x1000]
            } else {
                &bytes[0x1000..]
            };
            let text = String::from_utf8_lossy(&newest[5..]).into_owned();
            for word in words {
                assert!(text.split('\0').any(|line| line == *word), "{word} in {text}");
            }
        };
        let left = format!("BOOT_a_LEFT={left}");
        control.disarm("b").unwrap();
        has(&["BOOT_ORDER=a", "BOOT_b_LEFT=0", &left]);
        fs::write(control.staging("b"), b"a FIT image").unwrap();
        control.arm("b", 2, &Digest::of(b"a FIT image"), false).unwrap();
        has(&["BOOT_ORDER=b a", "BOOT_b_LEFT=2", &left]);
    }
    fs::remove_file(boot.join("cnova-b.fit")).unwrap();
    let control = UBoot::new(boot, environment(dir.path(), "BOOT_ORDER=a\n"));
    let said = control
        .arm("b", 2, &Digest::of(b"a FIT image"), false)
        .unwrap_err()
        .to_string();
    assert!(said.contains("which is not there"), "{said}");
}

#[test]
fn a_link_in_place_of_a_partition_is_followed_to_nothing_else_than_the_slot() {
    let machine = Machine::new();
    // As udev makes names; the kernel's own are used.
    fs::create_dir_all(machine.at("dev/disk/by-partlabel")).unwrap();
    symlink(machine.at("dev/vda2"), machine.at("dev/disk/by-partlabel/root-b")).unwrap();
    let (slots, new) = (machine.slots(), bundle("2.0", 1));
    open(&slots, &new);
    write(&slots, &new, 0, new.bytes.len());
    assert!(fs::read(machine.at("dev/vda2")).unwrap().iter().all(|b| *b == 0));
}
