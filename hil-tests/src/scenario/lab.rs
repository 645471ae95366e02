//! Boards with power and a shell on a console, virtual or real: all that scenarios ask of them follows from these two, and
//! from a hub of their own on this machine.

mod systems;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_agent_core::Status;

use super::application::Application;
use super::images::{Builder, CLI};
use super::plant::{Place, Plant};
use super::update::{System, SystemAtHub};
use super::{Clock, Done, Memory, Options, Sample, Shown, Target, Trouble};
use crate::board::machine::Machine;

/// Where an agent's configuration lies on a board.
const CONFIG: &str = "/etc/cnova/agent.toml";
/// What fills the disk.
const FILL: &str = "/var/lib/cnova/fill";
/// Where the control group of the agent and all that it starts lies.
const SLICE: &str = "/sys/fs/cgroup/cnova.slice";
/// Where every virtual or UEFI board has its TPM.
const TCTI: &str = "device:/dev/tpmrm0";
/// What a board says that refuses its root.
const REFUSAL: &str = "dm-verity device corrupted";
/// A byte of the root's superblock, which is read first.
const DAMAGED_BYTE: u64 = 20;
/// Bytes of a file system's sector, as the kernel counts them.
const SECTOR: u64 = 512;
/// Lines of a console that a report shows.
const TAIL_LINES: usize = 60;

/// How the hub is told of a new board.
pub(super) enum Known {
    /// By the certificate of its TPM's endorsement key, DER.
    ByCertificate(Vec<u8>),
    /// By a token in its image.
    ByToken,
}

/// Power and a console.
pub(super) trait Hardware {
    /// What it is, for the report.
    fn about(&mut self) -> Vec<(String, String)>;
    /// Its description.
    fn machine(&self) -> &Machine;
    /// Where it finds the hub.
    fn place(&mut self) -> Done<Place>;
    /// An image that was made elsewhere, of a plant whose folder is kept; else one is built.
    fn ready_image(&self) -> Option<PathBuf>;
    /// The next board to flash, which may be the same one, and how the hub is told of it.
    fn next(&mut self) -> Done<Known>;
    /// Flashes it; it is off then.
    fn flash(&mut self, image: &Path) -> Done;
    fn switch_on(&mut self, clock: Clock) -> Done;
    fn cut_power(&mut self) -> Done;
    /// Waits for its shell.
    fn wait_shell(&mut self) -> Done;
    /// Runs a command in its shell; what it printed.
    fn run(&mut self, command: &str) -> Done<String>;
    /// Starts it again in order; it is on its way up then.
    fn restart(&mut self) -> Done;
    /// Sees to it that a board that started itself anew is on; whether it can be asked.
    fn follow(&mut self) -> Done<bool>;
    /// Waits until its console said it since it was switched on.
    fn wait_for(&mut self, text: &str) -> Done;
    /// What its console said since it was switched on.
    fn said(&mut self) -> String;
    /// Changes one byte of the first slot at this offset of the slot. It is on before, and off then.
    fn damage(&mut self, offset: u64) -> Done;
    /// Changes that byte back. It is off.
    fn mend(&mut self, offset: u64) -> Done;
    /// How long anything may take.
    fn patience(&self) -> Duration;
}

/// A board with a hub above it.
pub(super) struct Lab<H> {
    hardware: H,
    plant: Option<Plant>,
    work: PathBuf,
    options: Options,
    image: Option<PathBuf>,
    boards: usize,
    flashes: usize,
    /// Of the TPM that the hub was told of last.
    certificate: Option<Vec<u8>>,
    begin: Instant,
}

impl<H: Hardware> Lab<H> {
    /// Everything of it goes into the folder.
    pub(super) fn new(hardware: H, work: PathBuf, options: &Options) -> Self {
        Self {
            hardware,
            plant: None,
            work,
            options: options.clone(),
            image: None,
            boards: 0,
            flashes: 0,
            certificate: None,
            begin: Instant::now(),
        }
    }

    /// The plant, made when it is asked for first.
    pub(super) fn plant(&mut self) -> Done<&mut Plant> {
        let plant = match self.plant.take() {
            Some(plant) => plant,
            None => Plant::new(&self.work, &self.options.bin, self.hardware.place()?)?,
        };
        Ok(self.plant.insert(plant))
    }

    fn node(&self) -> String {
        format!("board-{}", self.boards)
    }

    fn site(&self) -> String {
        format!("plant-7/line-2/{}", self.node())
    }

    /// What makes images of this plant.
    fn builder(&mut self) -> Done<Builder> {
        let board = self.hardware.machine().name.clone();
        let programs = self.options.board_bin.clone();
        let plant = self.plant()?;
        Ok(Builder {
            board,
            programs,
            trust_bundle: plant.at("trust/trust-bundle.cose"),
            config: plant.write("image/agent.toml", plant.agent_configuration(TCTI).as_bytes())?,
            folder: plant.at("image").into(),
        })
    }

    /// The image for this plant: the same for all of its boards, but for a token.
    fn image(&mut self, token: Option<String>) -> Done<PathBuf> {
        if let Some(image) = self.hardware.ready_image().or_else(|| self.image.clone()) {
            return Ok(image);
        }
        let builder = self.builder()?;
        let token = match &token {
            Some(token) => Some(self.plant()?.write("image/token", token.as_bytes())?),
            None => None,
        };
        let image = builder.disk(token.as_deref())?;
        self.image = token.is_none().then(|| image.clone());
        Ok(image)
    }

    fn number(&mut self, file: &str) -> Done<u64> {
        let text = self.hardware.run(&format!("cat {file}"))?;
        match text.trim() {
            "max" => Ok(u64::MAX),
            text => text
                .parse()
                .map_err(|_| Trouble::Failed(format!("{file} holds {text:?}"))),
        }
    }

    /// Of each process in the budget: its name, its PSS in bytes, its open descriptors.
    fn processes(&mut self) -> Done<Vec<(String, u64, u64)>> {
        let text = self.hardware.run(&format!(
            "for p in $(find {SLICE} -name cgroup.procs -exec cat {{}} +); do echo p $(cat /proc/$p/comm) \
             $(grep ^Pss: /proc/$p/smaps_rollup) $(ls /proc/$p/fd | wc -l); done"
        ))?;
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["p", name, "Pss:", kib, "kB", descriptors] => Some((
                    name.to_string(),
                    kib.parse::<u64>().ok()? << 10,
                    descriptors.parse().ok()?,
                )),
                _ => None,
            }
        };
        let found: Vec<_> = text.lines().filter_map(line).collect();
        match found.is_empty() {
            true => Err(Trouble::Failed(format!("no process is in {SLICE}: {text}"))),
            false => Ok(found),
        }
    }

    fn shown(&mut self) -> Done<serde_json::Value> {
        let node = self.node();
        Ok(self.plant()?.node(&node)?.unwrap_or_default())
    }
}

impl<H: Hardware> Target for Lab<H> {
    fn about(&mut self) -> Vec<(String, String)> {
        let mut all = self.hardware.about();
        let machine = self.hardware.machine();
        all.push(("board".into(), format!("{} ({})", machine.name, machine.architecture)));
        all.push((
            "memory".into(),
            format!(
                "{} MiB, of which {} MiB for the agent and all that it starts",
                machine.memory.machine, machine.memory.agent
            ),
        ));
        if let Some(plant) = &self.plant {
            let version = plant.cnova(&["--version"]).unwrap_or_default();
            all.push((
                "programs".into(),
                format!("{}, from {}", version.trim(), plant.bin().display()),
            ));
        }
        all
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn pass(&mut self, time: Duration) -> Done {
        sleep(time);
        Ok(())
    }

    fn patience(&self) -> Duration {
        self.hardware.patience()
    }

    fn tail(&mut self) -> String {
        let last = |text: &str| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
        };
        let journal = self
            .hardware
            .run("journalctl -b -u cnova-agent -n 40 --no-pager")
            .unwrap_or_default();
        let log = |name| self.plant.as_ref().map(|p| p.log(name)).unwrap_or_default();
        let (hub, gateway) = (log("hub"), log("gateway"));
        format!(
            "--- console\n{}\n--- the agent's journal\n{journal}\n--- the hub\n{}\n--- the gateway\n{}",
            last(&self.hardware.said()),
            last(&hub),
            last(&gateway)
        )
    }

    fn give_up(&mut self) {
        let _ = self.hardware.cut_power();
    }

    fn flash(&mut self) -> Done {
        let known = self.hardware.next()?;
        let is_registered = matches!(&known, Known::ByCertificate(c) if self.certificate.as_ref() == Some(c));
        self.flashes += 1;
        if !is_registered && matches!(known, Known::ByCertificate(_)) || self.boards == 0 {
            self.boards += 1;
        }
        let (node, site) = (self.node(), self.site());
        let plant = self.plant()?;
        plant.start()?;
        let token = match &known {
            Known::ByCertificate(_) if is_registered => None,
            Known::ByCertificate(certificate) => {
                let file = plant.write(&format!("{node}.der"), certificate)?;
                plant.cnova(&["enroll", "ek", "--name", &node, "--site", &site, "--certificate", &file])?;
                None
            }
            Known::ByToken => {
                let token = plant.cnova(&["enroll", "token", "--name", &node, "--site", &site])?;
                Some(token.trim().to_owned())
            }
        };
        if let Known::ByCertificate(certificate) = known {
            self.certificate = Some(certificate);
        }
        let image = self.image(token)?;
        let architecture = self.hardware.machine().architecture.clone();
        let folder = PathBuf::from(self.plant()?.at("app"));
        self.builder()?.artifacts(&folder, &architecture)?;
        self.hardware.flash(&image)
    }

    fn switch_on(&mut self, clock: Clock) -> Done {
        self.hardware.switch_on(clock)
    }

    fn cut_power(&mut self) -> Done {
        self.hardware.cut_power()
    }

    fn wait_booted(&mut self) -> Done {
        self.hardware.wait_shell()
    }

    fn restart(&mut self) -> Done {
        self.hardware.restart()
    }

    fn is_blessed(&mut self) -> Done<bool> {
        let files = self.hardware.run("ls /efi/EFI/Linux || echo none")?;
        if files.contains("none") {
            return Err(Trouble::unsupported(
                "this board's boot loader does not count in file names",
            ));
        }
        // The command line names no slot: both boot the same program. The partition below the verified root does.
        let slot = self
            .hardware
            .run("sed -n 's/^PARTNAME=root-//p' /sys/block/dm-0/slaves/*/uevent")?;
        let slot = slot.trim();
        if slot.is_empty() {
            return Err(Trouble::failed("no partition root-a or root-b lies below the root"));
        }
        let prefix = format!("cnova-{slot}");
        let mut names = files.split_whitespace();
        Ok(names.any(|name| name.starts_with(&prefix) && name.ends_with(".efi") && !name.contains('+')))
    }

    fn damage_root(&mut self) -> Done {
        self.hardware.damage(DAMAGED_BYTE)
    }

    fn wait_refused(&mut self) -> Done<String> {
        self.hardware.switch_on(Clock::Right)?;
        self.hardware.wait_for(REFUSAL)?;
        Ok(self.hardware.said())
    }

    fn mend_root(&mut self) -> Done {
        self.hardware.mend(DAMAGED_BYTE)
    }

    fn fill_disk(&mut self) -> Done {
        // In large pieces, then in small ones.
        let said = self.hardware.run(&format!(
            "dd if=/dev/zero of={FILL} bs=256k; dd if=/dev/zero of={FILL}-more bs=4k; sync; df /var/lib/cnova"
        ))?;
        match said.contains("No space left") {
            true => Ok(()),
            false => Err(Trouble::Failed(format!("the disk did not become full: {said}"))),
        }
    }

    fn free_disk(&mut self) -> Done {
        self.hardware.run(&format!("rm -f {FILL} {FILL}-more; sync")).map(drop)
    }

    fn board_time(&mut self) -> Done<u64> {
        let text = self.hardware.run("date +%s")?;
        text.trim()
            .parse()
            .map_err(|_| Trouble::Failed(format!("`date` says {text:?}")))
    }

    fn lose_clock(&mut self) -> Done {
        // The kernel takes no time before that of its own start.
        self.hardware
            .run("date -u -s @$(( $(cut -d. -f1 /proc/uptime) + 60 )); systemctl restart cnova-agent")
            .map(drop)
    }

    fn lost_its_ledger(&mut self) -> Done<bool> {
        let found = self.hardware.run(
            "ls /var/lib/cnova | grep corrupt; journalctl -b --no-pager -u cnova-agent | grep store-set-aside; true",
        )?;
        Ok(!found.trim().is_empty())
    }

    fn cut_network(&mut self) -> Done {
        self.plant()?.kill();
        Ok(())
    }

    fn heal_network(&mut self) -> Done {
        self.plant()?.start()
    }

    fn trust(&mut self) -> Done<Option<String>> {
        Ok(self.shown()?["trust"].as_str().map(str::to_owned))
    }

    fn judged_s(&mut self) -> Done<u64> {
        let node = self.node();
        let shown = self.plant()?.json(&["attest", "show", &node])?;
        Ok(shown["judged_s"].as_u64().unwrap_or_default())
    }

    fn is_connected(&mut self) -> Done<bool> {
        Ok(self.shown()?["link"] == "connected")
    }

    fn approve(&mut self) -> Done {
        let (node, name) = (self.node(), format!("image-{}", self.flashes));
        // A name for each flashing: what the next one boots may differ.
        self.plant()?
            .cnova(&["reference", "add", &name, "--from-node", &node])
            .map(drop)
    }

    fn deploy(&mut self, application: &Application) -> Done {
        let site = self.site();
        let plant = self.plant()?;
        let artifact = |name: &str| {
            let file = match name {
                "container" => "container.tar",
                "ebpf" => "ebpf.o",
                "wasm" => "wasm.wasm",
                "infer-cpu" => "infer-cpu.wasm",
                _ => "infer-npu.wasm",
            };
            format!("file: {file}")
        };
        let manifest = plant.write("app/app.yaml", application.manifest(&site, artifact).as_bytes())?;
        plant.cnova(&["apply", &manifest]).map(drop)
    }

    fn remove(&mut self, application: &str) -> Done {
        self.plant()?.cnova(&["delete", application, "--yes"]).map(drop)
    }

    fn at_hub(&mut self) -> Done<Vec<Shown>> {
        let node = self.node();
        let all = self.plant()?.json(&["get", "workloads"])?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let here = all.as_array().into_iter().flatten().filter(|w| w["node"] == *node);
        Ok(here
            .map(|w| Shown {
                id: format!("{}/{}", text(&w["application"]), text(&w["workload"])),
                state: text(&w["state"]),
            })
            .collect())
    }

    fn reported(&mut self) -> Done<(u64, u64)> {
        let shown = self.shown()?;
        Ok(super::version(shown["reported"].as_str().unwrap_or_default()))
    }

    fn has_newest(&mut self) -> Done<bool> {
        Ok(self.shown()?["in_sync"] == true)
    }

    fn alarms_at_hub(&mut self) -> Done<String> {
        let shown = self.shown()?;
        let alarms = shown["alarms"].as_array().into_iter().flatten();
        let text = |a: &serde_json::Value| match a.as_str() {
            Some(text) => text.to_owned(),
            None => a.to_string(),
        };
        Ok(alarms.map(text).collect::<Vec<_>>().join("; "))
    }

    fn workload_log(&mut self, id: &str) -> Done<String> {
        let node = self.node();
        // There may be none yet.
        Ok(self
            .plant()?
            .cnova(&["logs", id, "--node", &node, "--lines", "20"])
            .unwrap_or_default())
    }

    fn explain(&mut self, id: &str) -> Done<String> {
        self.plant()?.cnova(&["explain", "workload", id])
    }

    fn status(&mut self) -> Done<Option<Status>> {
        let text = self
            .hardware
            .run(&format!("cnova-agent status --json --config {CONFIG}"))?;
        let json = text
            .find('{')
            .zip(text.rfind('}'))
            .and_then(|(from, to)| text.get(from..=to));
        Ok(json.and_then(|json| serde_json::from_str(json).ok()))
    }

    fn workloads_alive(&mut self, then: &Status) -> Done {
        for workload in then.workloads.iter().filter(|w| w.pid != 0) {
            let pid = workload.pid;
            let said = self.hardware.run(&format!("kill -0 {pid} && echo it lives"))?;
            if !said.contains("it lives") {
                return Err(Trouble::Failed(format!(
                    "{} (process {pid}) does not live any more",
                    workload.id
                )));
            }
        }
        Ok(())
    }

    fn build_system(&mut self, system: &System) -> Done {
        if self.hardware.ready_image().is_some() {
            return Err(Trouble::unsupported(
                "its image was made elsewhere: another system for it is made there, too, and offered by hand (docs/OS-UPDATES.md)",
            ));
        }
        self.bundle(system).map(drop)
    }

    fn offer(&mut self, system: &System) -> Done {
        self.offer_bundle(system)
    }

    fn offer_damaged(&mut self, system: &System) -> Done<String> {
        self.offer_damaged_bundle(system)
    }

    fn approve_system(&mut self, system: &System) -> Done {
        self.approve_bundle(system)
    }

    fn system_at_hub(&mut self) -> Done<SystemAtHub> {
        self.shown_system()
    }

    fn follow(&mut self) -> Done<bool> {
        self.hardware.follow()
    }

    fn cnova_on_board(&mut self) -> Done<String> {
        let has = self.hardware.run(&format!("command -v {CLI} || echo none"))?;
        if has.contains("none") {
            return Err(Trouble::unsupported("its image has no cnova"));
        }
        let node = self.node();
        let Some(environment) = self.plant()?.administrator_on_board() else {
            return Err(Trouble::unsupported("the hub's API listens for this machine only"));
        };
        let trust = self.hardware.run(&format!(
            "{CLI} trust show /etc/cnova/trust-bundle.cose && echo it holds"
        ))?;
        let nodes = self.hardware.run(&format!("{environment} {CLI} get nodes"))?;
        if !trust.contains("it holds") || !nodes.contains(&node) {
            return Err(Trouble::Failed(format!("cnova on the board says: {trust}\n{nodes}")));
        }
        let version = self.hardware.run(&format!("{CLI} --version; uname -m"))?;
        Ok(version.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn memory(&mut self) -> Done<Memory> {
        let pss = self.processes()?.iter().map(|(_, pss, _)| pss).sum();
        let events = self.hardware.run(&format!("cat {SLICE}/memory.events"))?;
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        Ok(Memory {
            budget: self.number(&format!("{SLICE}/memory.max"))?,
            now: self.number(&format!("{SLICE}/memory.current"))?,
            peak: self.number(&format!("{SLICE}/memory.peak")).unwrap_or(0),
            pss,
            kills: kills.unwrap_or(0),
        })
    }

    fn sample(&mut self) -> Done<Sample> {
        let processes = self.processes()?;
        let (agent, runtimes): (Vec<_>, Vec<_>) = processes.iter().partition(|(name, _, _)| name == "cnova-agent");
        let sum = |all: &[&(String, u64, u64)]| all.iter().map(|(_, pss, _)| pss).sum();
        // The state partition is mounted there, or above it.
        let stat = self
            .hardware
            .run("cat /sys/class/block/$(basename $(readlink -f $(df -P /var/lib/cnova | sed -n '2s/ .*//p')))/stat")?;
        // The seventh field: sectors written (Documentation/ABI/stable/sysfs-block).
        let sectors: Option<u64> = stat.split_whitespace().nth(6).and_then(|n| n.parse().ok());
        Ok(Sample {
            at: self.now(),
            agent_pss: sum(&agent),
            runtimes_pss: sum(&runtimes),
            descriptors: processes.iter().map(|(_, _, descriptors)| descriptors).sum(),
            written: sectors
                .ok_or_else(|| Trouble::Failed(format!("the state partition's statistics are {stat:?}")))?
                * SECTOR,
        })
    }
}

/// Changes one bit of a disk image.
pub(super) fn flip(disk: &Path, offset: u64) -> Done {
    let flip = || -> std::io::Result<()> {
        let mut disk = File::options().read(true).write(true).open(disk)?;
        let mut byte = [0];
        disk.seek(SeekFrom::Start(offset))?;
        disk.read_exact(&mut byte)?;
        disk.seek(SeekFrom::Start(offset))?;
        disk.write_all(&[byte[0] ^ 1])
    };
    flip().map_err(|e| Trouble::failed(format!("{}: {e}", disk.display())))
}
