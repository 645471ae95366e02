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
    /// Seconds of an orderly shutdown where there is only SSH; for the bridge.
    shutdown_seconds: Option<u64>,
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

impl Bridge {
    fn start(file: &Path, environment: &[(&str, String)]) -> Done<Self> {
        let script = repository().join("hil-tests/labgrid/bridge.py");
        let mut child = Command::new(python())
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
                "labgrid's bridge ended ({why}): is labgrid installed? `make hil TARGET=labgrid:FILE` installs it"
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
    pub(super) fn open(file: &Path, folder: &Path) -> Done<Self> {
        std::fs::create_dir_all(folder).map_err(Trouble::failed)?;
        let (file, folder) = (&absolute(file), &absolute(folder));
        let text = std::fs::read_to_string(file).map_err(|e| Trouble::Failed(format!("{}: {e}", file.display())))?;
        let unfilled =
            { text.lines().zip(1..) }.find(|(line, _)| line.contains("FILL-IN") && !line.trim().starts_with('#'));
        if let Some((line, number)) = unfilled {
            return Err(Trouble::Failed(format!(
                "{}:{number}: still to be filled in: {} (docs/HARDWARE.md says how)",
                file.display(),
                line.trim()
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

    fn read(&self, file: &Path) -> Done<Vec<u8>> {
        let beside = self.file.parent().unwrap_or(Path::new(".")).join(file);
        std::fs::read(&beside).map_err(|e| Trouble::Failed(format!("{}: {e}", beside.display())))
    }
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
            makers.push(self.read(file)?);
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
            Some(file) => Ok(Known::ByCertificate(self.read(&file)?)),
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
        // It starts itself; whether it can be asked is known when it was.
        self.wait_shell().map(|()| true)
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
        let said = self.run(&format!(
            r#"d=/dev/disk/by-partlabel/root-$(sed 's/.*cnova.root=root-\(.\).*/\1/' /proc/cmdline); \
             b=$(dd if=$d bs=1 skip={offset} count=1 2>/dev/null | od -An -tu1); \
             printf "\\$(printf %03o $((b ^ 1)))" | dd of=$d bs=1 seek={offset} conv=notrunc,fsync && echo changed"#
        ))?;
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
            let Err(Trouble::Failed(why)) = Labgrid::open(&file, &folder) else {
                panic!("{name} was taken as it is");
            };
            assert!(why.contains("FILL-IN") && why.contains(name), "{why}");
        }
    }
}
