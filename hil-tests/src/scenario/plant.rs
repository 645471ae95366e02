//! The plant above a board: a root of trust and a hub on this machine, in a folder that goes with it.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Done, Trouble};

/// The hub's name.
const HUB: &str = "hub-1";
/// How long the hub may take to be ready, on a busy machine.
const READY: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
/// Programs of the plant, and those that go into an image.
const PROGRAMS: [&str; 7] = [
    "cnova",
    "cnova-hub",
    "cnova-aot",
    "cnova-agent",
    "cnova-runtime-wasm",
    "cnova-runtime-container",
    "cnova-runtime-ebpf",
];
/// The token of the plant's administrator, in its folder.
const TOKEN: &str = "token";
/// Below the ports that Linux gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Where a board finds the hub, and how the hub knows the board.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The address on which the hub listens for the board.
    pub(super) listen: String,
    /// This machine's address as the board sees it.
    pub(super) seen: String,
    /// Ports for its node's link and its enrolment, where they must be known before; else free ones are taken.
    pub(super) ports: Option<[u16; 2]>,
    /// Certificates of the makers of TPMs, DER or PEM files.
    pub(super) makers: Vec<Vec<u8>>,
}

/// A hub with its folder.
pub(super) struct Plant {
    dir: PathBuf,
    bin: PathBuf,
    place: Place,
    ports: [u16; 3],
    hub: Option<Child>,
    token: String,
}

fn free_port() -> Done<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..100)
        .map(|_| fastrand::u16(PORTS))
        .find(free)
        .ok_or_else(|| Trouble::failed("there is no free port"))
}

impl Plant {
    /// A plant in an empty folder, with these programs. Its hub runs.
    pub(super) fn new(dir: &Path, bin: &Path, place: Place) -> Done<Self> {
        let missing: Vec<&str> = { PROGRAMS.into_iter() }.filter(|p| !bin.join(p).is_file()).collect();
        if !missing.is_empty() {
            return Err(Trouble::Failed(format!(
                "{} are not in {}: build them first (cargo build --workspace --bins)",
                missing.join(", "),
                bin.display()
            )));
        }
        let [link, door] = match place.ports {
            Some(ports) => ports,
            None => [free_port()?, free_port()?],
        };
        let mut plant = Self {
            dir: dir.to_owned(),
            bin: bin.to_owned(),
            place,
            ports: [free_port()?, link, door],
            hub: None,
            token: String::new(),
        };
        plant.set_up()?;
        plant.start()?;
        Ok(plant)
    }

    /// A path in the plant's folder.
    pub(super) fn at(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The folder of the programs.
    pub(super) fn bin(&self) -> &Path {
        &self.bin
    }

    /// Writes a file in the plant's folder, with the folders above it; its path.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Done<String> {
        let path = self.dir.join(name);
        let parent = path.parent().unwrap_or(&self.dir);
        let written = fs::create_dir_all(parent).and_then(|()| fs::write(&path, bytes));
        written.map_err(|e| Trouble::Failed(format!("{}: {e}", path.display())))?;
        Ok(path.display().to_string())
    }

    fn set_up(&mut self) -> Done {
        for (i, maker) in self.place.makers.clone().iter().enumerate() {
            self.write(&format!("makers/{i}.der"), maker)?;
        }
        self.write("logs/README", b"what the hub said\n")?;
        let (trust, tokens) = (self.at("trust"), self.at("tokens.toml"));
        match fs::read_to_string(self.at(TOKEN)) {
            // A plant that was kept: images were made for it.
            Ok(token) => self.token = token,
            Err(_) => {
                self.cnova(&["trust", "init", &trust, "--tree", "scenarios"])?;
                self.cnova(&["trust", "issuer", &trust])?;
                self.cnova(&["trust", "issue", HUB, "--site", "hub", "--dir", &trust])?;
                let token = self.cnova(&[
                    "token",
                    "new",
                    "--name",
                    "scenarios",
                    "--role",
                    "admin",
                    "--tokens",
                    &tokens,
                ])?;
                token.trim().clone_into(&mut self.token);
                // Last: where it is, the rest is.
                let path = self.write(TOKEN, self.token.as_bytes())?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(Trouble::failed)?;
            }
        }
        let listen = &self.place.listen;
        let roots = match self.place.makers.is_empty() {
            true => String::new(),
            false => format!("tpm_roots = \"{}\"\n", self.at("makers")),
        };
        let [api, link, door] = self.ports;
        let text = format!(
            "state_dir = \"{}\"\ntokens = \"{tokens}\"\n[identity]\ncertificate = \"{trust}/nodes/{HUB}/node.pem\"\n\
             key = \"{trust}/nodes/{HUB}/node.key\"\ntrust_bundle = \"{trust}/nodes/{HUB}/trust-bundle.cose\"\n\
             [signing]\nkey = \"{trust}/hub-signing.key\"\n[api]\nlisten = \"127.0.0.1:{api}\"\n[mqtt]\nlisten = \"{listen}:{link}\"\n\
             [enrolment]\nlisten = \"{listen}:{door}\"\nissuer_certificate = \"{trust}/hub-issuer.pem\"\n\
             issuer_key = \"{trust}/hub-issuer.key\"\n{roots}",
            self.at("state"),
        );
        self.write("hub.toml", text.as_bytes())?;
        Ok(())
    }

    /// What an image brings that was made elsewhere: where its hub is, as a file of `agent.d`.
    pub(super) fn bootstrap(&self) -> String {
        let [_, link, door] = self.ports;
        let seen = &self.place.seen;
        format!(
            "[parent]\nnode = \"{HUB}\"\naddress = \"{seen}:{link}\"\n[enrolment]\nendpoints = [\"{seen}:{door}\"]\n"
        )
    }

    /// The configuration of an agent below the hub.
    pub(super) fn agent_configuration(&self, tcti: &str) -> String {
        let [_, link, door] = self.ports;
        let seen = &self.place.seen;
        format!(
            "state_dir = \"/var/lib/cnova\"\nruntime_dir = \"/usr/lib/cnova/runtimes\"\n\
             [parent]\nnode = \"{HUB}\"\naddress = \"{seen}:{link}\"\n[runtime]\ncgroup_parent = \"cnova.slice/workloads\"\n\
             [identity]\nroot = \"tpm\"\ntcti = \"{tcti}\"\ncertificate = \"/var/lib/cnova/node.pem\"\n\
             trust_bundle = \"/etc/cnova/trust-bundle.cose\"\n[enrolment]\nendpoints = [\"{seen}:{door}\"]\n"
        )
    }

    /// Starts the hub, if it does not run.
    pub(super) fn start(&mut self) -> Done {
        if self.hub.is_some() {
            return Ok(());
        }
        let path = self.at("logs/hub.log");
        let fail = |e: std::io::Error| Trouble::Failed(format!("the hub cannot be started: {e}"));
        let log = File::create(&path).map_err(fail)?;
        let child = Command::new(self.bin.join("cnova-hub"))
            .args(["run", "--config", &self.at("hub.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(fail)?)
            .stderr(log)
            .spawn()
            .map_err(fail)?;
        self.hub = Some(child);
        let until = Instant::now() + READY;
        while !self.log().contains("the hub is ready") {
            if Instant::now() > until {
                return Err(Trouble::Failed(format!("the hub is not ready:\n{}", self.log())));
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    /// Kills the hub: nobody is above the board.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.hub.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What the hub said since it was started last.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.at("logs/hub.log")).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("cnova"));
        command
            .args(arguments)
            .env("HOME", &self.dir)
            .env("CNOVA_TOKEN", &self.token)
            .env("CNOVA_HUB", format!("http://127.0.0.1:{}", self.ports[0]))
            .stdin(Stdio::null());
        command
    }

    /// What a shell on the board sets so that `cnova` finds the hub's API, where the board can reach it.
    pub(super) fn administrator_on_board(&self) -> Option<String> {
        let (seen, api, token) = (&self.place.seen, self.ports[0], &self.token);
        let is_reached = self.place.listen == "127.0.0.1";
        is_reached.then(|| format!("CNOVA_HUB=http://{seen}:{api} CNOVA_TOKEN={token}"))
    }

    /// Runs `cnova`; what it printed.
    pub(super) fn cnova(&self, arguments: &[&str]) -> Done<String> {
        let what = format!("cnova {}", arguments.join(" "));
        let output = self.command(arguments).output();
        let output = output.map_err(|e| Trouble::Failed(format!("{what}: {e}")))?;
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(Trouble::Failed(format!("{what}: {}", said.trim()))),
        }
    }

    /// Runs `cnova ... -o json`.
    pub(super) fn json(&self, arguments: &[&str]) -> Done<Value> {
        let text = self.cnova(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|e| Trouble::Failed(format!("cnova {}: {e}", arguments.join(" "))))
    }

    /// What the hub shows of a node, once it has said hello.
    pub(super) fn node(&self, node: &str) -> Done<Option<Value>> {
        let nodes = self.json(&["get", "nodes"])?;
        let mut all = nodes.as_array().into_iter().flatten();
        Ok(all.find(|n| n["node"] == node).cloned())
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.kill();
    }
}
