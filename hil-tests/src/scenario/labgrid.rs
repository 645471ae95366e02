//! Real boards by [labgrid](https://labgrid.readthedocs.io): an environment file names their power switch, console and way of
//! flashing, and a small program (`hil-tests/labgrid/bridge.py`) speaks for them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use serde::Deserialize;
use serde_json::{Value, json};

use super::board::{certificate_of, new_chip};
use super::lab::{Hardware, Known, flip};
use super::plant::{Place, Plant};
use super::targets::repository;
use super::{Clock, Done, Options, Trouble};
use crate::board::machine::Machine;

/// What an environment file says in `options` of its target.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Its description in `firmware-images/boards`.
    board: String,
    /// The address on which the hub listens for the board.
    listen: String,
    /// This machine as the board sees it.
    seen: String,
    /// Ports of the hub: for the node's link, for enrolment. Any, where nothing stands between.
    ports: Option<[u16; 2]>,
    /// Certificates of makers of TPMs: files.
    makers: Vec<PathBuf>,
    /// The certificate of the endorsement key: a file. Without one the board enrols with a token.
    ek_certificate: Option<PathBuf>,
    /// An image that was made elsewhere, of the plant in `plant`.
    image: Option<PathBuf>,
    /// A plant's folder that is kept.
    plant: Option<PathBuf>,
    /// `swtpm`: the board is virtual, and its TPM too.
    tpm: Option<String>,
    /// How it is flashed; for the bridge.
    flash: Value,
    /// Seconds that anything may take.
    patience: Option<u64>,
    /// Seconds between off and on; for the bridge.
    off_seconds: Option<f64>,
}

/// What a board of an environment file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be used.
    Use,
    /// To make the plant that its image is made for: there is no image yet.
    Prepare,
}

impl Purpose {
    /// The line that nobody filled in, with its number.
    fn unfilled<'a>(self, text: &'a str) -> Option<(&'a str, usize)> {
        let may_lack = |line: &str| self == Self::Prepare && line.starts_with("image:");
        let mut lines = text.lines().map(str::trim).zip(1..);
        lines.find(|(line, _)| line.contains("FILL-IN") && !line.starts_with('#') && !may_lack(line))
    }
}

/// Where a virtual board finds its TPM, in its folder.
const TPM_SOCKET: &str = "tpm";

/// A board of an environment file.
pub(super) struct Labgrid {
    file: PathBuf,
    folder: PathBuf,
    settings: Settings,
    machine: Machine,
    bridge: Bridge,
    stand_in: Option<StandIn>,
}

/// The TPM of a virtual board.
struct StandIn {
    maker: Maker,
    chip: Swtpm,
}

/// The program that speaks labgrid.
struct Bridge {
    child: Child,
    told: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Unsupported(String),
    Failed(String),
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Python with labgrid: that of `make hil`, or the system's.
fn python() -> PathBuf {
    let own = repository().join("target/labgrid/bin/python3");
    if own.is_file() { own } else { "python3".into() }
}

impl Settings {
    /// With files looked for beside the environment file.
    fn beside(mut self, file: &Path) -> Done<Self> {
        // An image that is there is not made again for each board, so it holds no token.
        if self.image.is_some() && self.ek_certificate.is_none() {
            return Err(Trouble::Failed(format!(
                "{}: options: `image` needs `ek_certificate`: the hub has to know the TPM, as an image that is made once for all \
                 cannot hold a token for one board (docs/HARDWARE.md says how the certificate is read)",
                file.display()
            )));
        }
        let folder = file.parent().unwrap_or(Path::new("."));
        let files = [&mut self.ek_certificate, &mut self.image, &mut self.plant];
        for path in files.into_iter().flatten().chain(&mut self.makers) {
            *path = folder.join(&*path);
        }
        Ok(self)
    }
}

/// What changes one byte of the running slot from within, and says so. The command line names no slot: the partition below the
/// verified root does.
fn damage(sys: &str, dev: &str, offset: u64) -> String {
    let find = format!(
        r#"for m in {sys}/block/dm-*; do [ "$(cat $m/dm/name)" = root ] && s=$(ls $m/slaves); done; d={dev}/${{s:-none}}"#
    );
    let read = format!("b=$(dd if=$d bs=1 skip={offset} count=1 2>/dev/null | od -An -tu1)");
    let write = format!(r#"printf "\\$(printf %03o $((b ^ 1)))" | dd of=$d bs=1 seek={offset} conv=notrunc,fsync"#);
    format!(r#"{find}; {read}; [ -n "$b" ] && {write} && echo changed"#)
}

impl Bridge {
    fn start(file: &Path, environment: &[(&str, String)]) -> Done<Self> {
        let script = repository().join("hil-tests/labgrid/bridge.py");
        let mut child = Command::new(python())
            .arg("-B")
            .arg(&script)
            .arg(file)
            .envs(environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|e| Trouble::Unsupported(format!("{}: {e}", python().display())))?;
        let (Some(told), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Trouble::failed("the bridge has no pipes"));
        };
        Ok(Self {
            child,
            told: Some(told),
            answers: BufReader::new(answers),
        })
    }

    fn ask(&mut self, request: &Value) -> Done<Value> {
        let gone = |why: &dyn std::fmt::Display| {
            Trouble::Failed(format!(
                "labgrid's bridge ended ({why}): is labgrid installed? `make hil ON=labgrid:FILE` installs it"
            ))
        };
        let told = self.told.as_mut().ok_or_else(|| gone(&"it was closed"))?;
        writeln!(told, "{request}")
            .and_then(|()| told.flush())
            .map_err(|e| gone(&e))?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|e| gone(&e))?;
        match serde_json::from_str(&line).map_err(|e| gone(&e))? {
            Answer::Ok(value) => Ok(value),
            Answer::Unsupported(why) => Err(Trouble::Unsupported(why)),
            Answer::Failed(why) => Err(Trouble::Failed(why)),
        }
    }

    fn text(&mut self, request: &Value) -> Done<String> {
        Ok(self.ask(request)?.as_str().unwrap_or_default().to_owned())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // At the end of its input it switches off what it switched on and ends.
        self.told = None;
        let _ = self.child.wait();
    }
}

impl Labgrid {
    /// The board of this environment file. A virtual one has its files in the folder.
    pub(super) fn open(file: &Path, folder: &Path, purpose: Purpose) -> Done<Self> {
        std::fs::create_dir_all(folder).map_err(Trouble::failed)?;
        let (file, folder) = (&absolute(file), &absolute(folder));
        let text = std::fs::read_to_string(file).map_err(|e| Trouble::Failed(format!("{}: {e}", file.display())))?;
        if let Some((line, number)) = purpose.unfilled(&text) {
            return Err(Trouble::Failed(format!(
                "{}:{number}: still to be filled in: {line} (docs/HARDWARE.md says how)",
                file.display()
            )));
        }
        let environment = [
            ("LG_CNOVA_BOARD", folder.display().to_string()),
            ("LG_CNOVA_TPM", folder.join(TPM_SOCKET).display().to_string()),
        ];
        let mut bridge = Bridge::start(file, &environment)?;
        let told = bridge.ask(&json!({"do": "describe"}))?;
        let settings: Settings =
            serde_json::from_value(told).map_err(|e| Trouble::Failed(format!("{}: options: {e}", file.display())))?;
        let settings = settings.beside(file)?;
        let machine = Machine::named(&settings.board)?;
        let stand_in = match settings.tpm.as_deref() {
            None => None,
            Some("swtpm") => {
                let maker = Maker::new();
                let chip = new_chip(&maker)?;
                Some(StandIn { maker, chip })
            }
            Some(other) => {
                return Err(Trouble::Failed(format!(
                    "{}: options: tpm: `{other}` is none; write `swtpm`, or leave it out for a real one",
                    file.display()
                )));
            }
        };
        Ok(Self {
            file: file.to_owned(),
            folder: folder.to_owned(),
            settings,
            machine,
            bridge,
            stand_in,
        })
    }

    /// Makes the plant that is kept, before there is an image for it; the trust bundle and the bootstrap that the image is to
    /// have.
    ///
    /// # Errors
    /// The environment file names no folder for it, or no ports.
    pub(super) fn prepare(mut self, options: &Options) -> Done<[String; 2]> {
        let (Some(folder), Some(_)) = (self.plant_folder(), self.settings.ports) else {
            return Err(Trouble::Failed(format!(
                "{}: options: name `plant` (a folder that is kept) and `ports` (two that the board may reach)",
                self.file.display()
            )));
        };
        std::fs::create_dir_all(&folder).map_err(Trouble::failed)?;
        let plant = Plant::new(&folder, &options.bin, self.place()?)?;
        let bootstrap = plant.write("bootstrap.toml", plant.bootstrap().as_bytes())?;
        Ok([plant.at("trust/trust-bundle.cose"), bootstrap])
    }

    /// The plant's folder, if it is kept.
    pub(super) fn plant_folder(&self) -> Option<PathBuf> {
        self.settings.plant.clone()
    }
}

fn read(file: &Path) -> Done<Vec<u8>> {
    std::fs::read(file).map_err(|e| Trouble::Failed(format!("{}: {e}", file.display())))
}

impl Hardware for Labgrid {
    fn about(&mut self) -> Vec<(String, String)> {
        let told = self.bridge.ask(&json!({"do": "about"})).unwrap_or_default();
        let drivers = told["drivers"].as_str().unwrap_or_default();
        vec![
            ("environment".into(), self.file.display().to_string()),
            ("labgrid's drivers".into(), drivers.to_owned()),
        ]
    }

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn place(&mut self) -> Done<Place> {
        let mut makers = Vec::new();
        for file in &self.settings.makers {
            makers.push(read(file)?);
        }
        makers.extend(self.stand_in.as_ref().map(|s| s.maker.certificate().to_vec()));
        Ok(Place {
            listen: self.settings.listen.clone(),
            seen: self.settings.seen.clone(),
            ports: self.settings.ports,
            makers,
        })
    }

    fn ready_image(&self) -> Option<PathBuf> {
        self.settings.image.clone()
    }

    fn next(&mut self) -> Done<Known> {
        if let Some(stand_in) = &mut self.stand_in {
            stand_in.chip = new_chip(&stand_in.maker)?;
            return Ok(Known::ByCertificate(certificate_of(&stand_in.chip)?));
        }
        match self.settings.ek_certificate.clone() {
            Some(file) => Ok(Known::ByCertificate(read(&file)?)),
            None => Ok(Known::ByToken),
        }
    }

    fn flash(&mut self, image: &Path) -> Done {
        if let (Some(_), Some(emulated)) = (&self.stand_in, &self.machine.emulated) {
            let to = self.folder.join("firmware");
            std::fs::copy(&emulated.firmware[1], &to).map_err(|e| Trouble::Failed(format!("{}: {e}", to.display())))?;
        }
        self.bridge.ask(&json!({"do": "flash", "image": image})).map(drop)
    }

    fn switch_on(&mut self, clock: Clock) -> Done {
        if clock == Clock::Lost {
            return Err(Trouble::unsupported(
                "labgrid cannot take the battery out of a real-time clock; the clock is set under the running system instead",
            ));
        }
        if let Some(stand_in) = &mut self.stand_in {
            // Each new board has a new one; the environment file knows one place.
            let (socket, place) = (stand_in.chip.serve_machine(), self.folder.join(TPM_SOCKET));
            let _ = std::fs::remove_file(&place);
            std::os::unix::fs::symlink(socket, &place).map_err(Trouble::failed)?;
        }
        self.bridge.ask(&json!({"do": "on"})).map(drop)
    }

    fn cut_power(&mut self) -> Done {
        self.bridge.ask(&json!({"do": "off"})).map(drop)
    }

    fn wait_shell(&mut self) -> Done {
        self.bridge.ask(&json!({"do": "wait_shell"})).map(drop)
    }

    fn run(&mut self, command: &str) -> Done<String> {
        self.bridge.text(&json!({"do": "run", "command": command}))
    }

    fn restart(&mut self) -> Done {
        self.bridge.ask(&json!({"do": "restart"})).map(drop)
    }

    fn follow(&mut self) -> Done<bool> {
        let answers = self.bridge.ask(&json!({"do": "follow"}))?;
        Ok(answers == true)
    }

    fn wait_for(&mut self, text: &str) -> Done {
        self.bridge.ask(&json!({"do": "wait_for", "text": text})).map(drop)
    }

    fn said(&mut self) -> String {
        self.bridge.text(&json!({"do": "said"})).unwrap_or_default()
    }

    fn damage(&mut self, offset: u64) -> Done {
        if self.stand_in.is_some() {
            self.cut_power()?;
            return self.mend(offset);
        }
        let said = self.run(&damage("/sys", "/dev", offset))?;
        if !said.contains("changed") {
            return Err(Trouble::Unsupported(format!(
                "the byte could not be changed from within: {said}"
            )));
        }
        self.cut_power()
    }

    fn mend(&mut self, offset: u64) -> Done {
        match self.stand_in {
            Some(_) => flip(&self.folder.join("disk.img"), self.machine.root_a() + offset),
            None => Err(Trouble::unsupported(
                "what does not start cannot mend itself: it is flashed again",
            )),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.settings.patience.unwrap_or(300))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_filled_in_says_where() {
        let folder = std::env::temp_dir();
        for name in ["pi5.yaml", "plc-x86.yaml"] {
            let file = repository().join("hil-tests/labgrid").join(name);
            let Err(Trouble::Failed(why)) = Labgrid::open(&file, &folder, Purpose::Use) else {
                panic!("{name} was taken as it is");
            };
            assert!(why.contains("FILL-IN") && why.contains(name), "{why}");
        }
    }

    #[test]
    fn a_plant_is_prepared_before_there_is_an_image() {
        let text = "options:\n  # FILL-IN\n  image: FILL-IN\n  plant: here\n";
        assert_eq!(Purpose::Prepare.unfilled(text), None);
        assert_eq!(Purpose::Use.unfilled(text), Some(("image: FILL-IN", 3)));
        let text = text.replace("here", "FILL-IN");
        assert_eq!(Purpose::Prepare.unfilled(&text), Some(("plant: FILL-IN", 4)));
    }

    #[test]
    fn an_image_that_is_there_needs_a_tpm_that_is_known() {
        let settings = |value: Value| serde_json::from_value::<Settings>(value).unwrap();
        let file = Path::new("/lab/pi5.yaml");
        let refused = settings(json!({"image": "pi5.wic.zst"})).beside(file);
        assert!(matches!(refused, Err(Trouble::Failed(why)) if why.contains("/lab/pi5.yaml: options: `image` needs")));
        let taken =
            settings(json!({"image": "pi5.wic.zst", "ek_certificate": "ek.der", "plant": "/plant"})).beside(file);
        let taken = taken.unwrap();
        assert_eq!(taken.image.unwrap(), Path::new("/lab/pi5.wic.zst"));
        assert_eq!(taken.plant.unwrap(), Path::new("/plant"));
    }

    #[test]
    fn an_option_that_is_misspelt_is_refused() {
        for option in ["off_seconds", "flash"] {
            serde_json::from_value::<Settings>(json!({option: 3})).unwrap();
        }
        let misspelt = serde_json::from_value::<Settings>(json!({"of_seconds": 3}));
        assert!(misspelt.unwrap_err().to_string().contains("of_seconds"));
    }

    /// Runs the command of [`damage`] with a device mapper of folders.
    fn damaged(root: &Path) -> String {
        let (sys, dev) = (root.join("sys"), root.join("dev"));
        let command = damage(&sys.display().to_string(), &dev.display().to_string(), 20);
        let done = Command::new("sh").args(["-c", &command]).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    #[test]
    fn the_byte_that_is_changed_is_the_running_roots() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (number, name, slave) in [(0, "state", "sda4"), (1, "root", "sda3"), (2, "other", "sda2")] {
            let mapped = root.join(format!("sys/block/dm-{number}"));
            std::fs::create_dir_all(mapped.join("dm")).unwrap();
            std::fs::write(mapped.join("dm/name"), format!("{name}\n")).unwrap();
            std::fs::create_dir_all(mapped.join("slaves").join(slave)).unwrap();
        }
        std::fs::create_dir(root.join("dev")).unwrap();
        assert!(!damaged(root).contains("changed"), "there is no such device");
        for disk in ["sda2", "sda3", "sda4", "none"] {
            std::fs::write(root.join("dev").join(disk), [b'A'; 64]).unwrap();
        }
        assert!(damaged(root).contains("changed"));
        let read = |disk: &str| std::fs::read(root.join("dev").join(disk)).unwrap();
        let mut wanted = [b'A'; 64];
        assert_eq!([read("sda2"), read("sda4"), read("none")], [wanted; 3]);
        wanted[20] = b'@';
        assert_eq!(read("sda3"), wanted);
    }
}
