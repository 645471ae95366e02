//! The plant above a board: a root of trust, a hub and a gateway on this machine, in a folder that goes with it.

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
/// The board's parent, and where it is.
const GATEWAY: &str = "line-gw";
const GATEWAY_SITE: &str = "plant-7/line-2";
/// How long a program may take to be ready, on a busy machine.
const READY: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
/// Programs of the plant, and those that go into an image.
const PROGRAMS: [&str; 8] = [
    "cnova",
    "cnova-hub",
    "cnova-gateway",
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

/// Where a board finds its gateway, and how the hub knows the board.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The address on which the gateway listens for the board.
    pub(super) listen: String,
    /// This machine's address as the board sees it.
    pub(super) seen: String,
    /// Ports for its node's link and its enrolment, where they must be known before; else free ones are taken.
    pub(super) ports: Option<[u16; 2]>,
    /// Certificates of the makers of TPMs, DER or PEM files.
    pub(super) makers: Vec<Vec<u8>>,
}

/// A hub with a gateway below it, and their folder.
pub(super) struct Plant {
    dir: PathBuf,
    bin: PathBuf,
    place: Place,
    /// For people and, on this machine, for the gateway.
    hub_ports: [u16; 2],
    /// For the board: its link, its enrolment.
    ports: [u16; 2],
    running: Vec<Child>,
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
    /// A plant in an empty folder, with these programs. Its hub and gateway run.
    pub(super) fn new(dir: &Path, bin: &Path, place: Place) -> Done<Self> {
        let missing: Vec<&str> = { PROGRAMS.into_iter() }.filter(|p| !bin.join(p).is_file()).collect();
        if !missing.is_empty() {
            return Err(Trouble::Failed(format!(
                "{} are not in {}: build them first (cargo build --workspace --bins)",
                missing.join(", "),
                bin.display()
            )));
        }
        let ports = match place.ports {
            Some(ports) => ports,
            None => [free_port()?, free_port()?],
        };
        let mut plant = Self {
            dir: dir.to_owned(),
            bin: bin.to_owned(),
            place,
            hub_ports: [free_port()?, free_port()?],
            ports,
            running: Vec::new(),
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
        if !Path::new(&self.at(&format!("trust/nodes/{GATEWAY}"))).is_dir() {
            self.cnova(&["trust", "issue", GATEWAY, "--site", GATEWAY_SITE, "--dir", &trust])?;
        }
        self.configure(&trust, &tokens)
    }

    fn configure(&self, trust: &str, tokens: &str) -> Done {
        let identity = |node: &str| {
            let folder = format!("{trust}/nodes/{node}");
            format!(
                "[identity]\ncertificate = \"{folder}/node.pem\"\nkey = \"{folder}/node.key\"\n\
                 trust_bundle = \"{folder}/trust-bundle.cose\"\n"
            )
        };
        let roots = match self.place.makers.is_empty() {
            true => String::new(),
            false => format!("tpm_roots = \"{}\"\n", self.at("makers")),
        };
        let ([api, above], [link, door]) = (self.hub_ports, self.ports);
        let text = format!(
            "state_dir = \"{}\"\ntokens = \"{tokens}\"\n{}[signing]\nkey = \"{trust}/hub-signing.key\"\n\
             boot_policy = [\"{trust}/boot-policy.key\"]\n[api]\nlisten = \"127.0.0.1:{api}\"\n\
             [mqtt]\nlisten = \"127.0.0.1:{above}\"\n[enrolment]\nissuer_certificate = \"{trust}/hub-issuer.pem\"\n\
             issuer_key = \"{trust}/hub-issuer.key\"\n{roots}",
            self.at("state"),
            identity(HUB),
        );
        self.write("hub.toml", text.as_bytes())?;
        let listen = &self.place.listen;
        let text = format!(
            "state_dir = \"{}\"\n[parent]\nnode = \"{HUB}\"\naddress = \"127.0.0.1:{above}\"\n\
             [listen]\naddress = \"{listen}:{link}\"\n{}[enrolment]\nlisten = \"{listen}:{door}\"\n",
            self.at("gateway"),
            identity(GATEWAY),
        );
        self.write("gateway.toml", text.as_bytes()).map(drop)
    }

    /// What an image brings that was made elsewhere: where its hub is, as a file of `agent.d`.
    pub(super) fn bootstrap(&self) -> String {
        let [link, door] = self.ports;
        let seen = &self.place.seen;
        format!(
            "[parent]\nnode = \"{GATEWAY}\"\naddress = \"{seen}:{link}\"\n[enrolment]\nendpoints = [\"{seen}:{door}\"]\n"
        )
    }

    /// The configuration of an agent below the gateway.
    pub(super) fn agent_configuration(&self, tcti: &str) -> String {
        let [link, door] = self.ports;
        let seen = &self.place.seen;
        format!(
            "state_dir = \"/var/lib/cnova\"\n[parent]\nnode = \"{GATEWAY}\"\naddress = \"{seen}:{link}\"\n[identity]\nroot = \"tpm\"\ntcti = \"{tcti}\"\ncertificate = \"/var/lib/cnova/node.pem\"\n\
             trust_bundle = \"/etc/cnova/trust-bundle.cose\"\n[enrolment]\nendpoints = [\"{seen}:{door}\"]\n"
        )
    }

    /// Starts the hub and the gateway, if they do not run.
    pub(super) fn start(&mut self) -> Done {
        if self.running.is_empty() {
            self.start_one("hub", "the hub is ready")?;
            self.start_one("gateway", "cnova_gateway: up")?;
        }
        Ok(())
    }

    /// `name` is that of its program behind `cnova-`, of its configuration and of its log.
    fn start_one(&mut self, name: &str, ready: &str) -> Done {
        let fail = |e: std::io::Error| Trouble::Failed(format!("the {name} cannot be started: {e}"));
        let log = File::create(self.at(&format!("logs/{name}.log"))).map_err(fail)?;
        let child = Command::new(self.bin.join(format!("cnova-{name}")))
            .args(["run", "--config", &self.at(&format!("{name}.toml"))])
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(fail)?)
            .stderr(log)
            .spawn()
            .map_err(fail)?;
        self.running.push(child);
        let until = Instant::now() + READY;
        while !self.log(name).contains(ready) {
            if Instant::now() > until {
                return Err(Trouble::Failed(format!("the {name} is not ready:\n{}", self.log(name))));
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    /// Kills the hub and the gateway: nobody is above the board.
    pub(super) fn kill(&mut self) {
        for mut child in self.running.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What the hub or the gateway said since it was started last.
    pub(super) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.at(&format!("logs/{name}.log"))).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("cnova"));
        command
            .args(arguments)
            .env("HOME", &self.dir)
            .env("CNOVA_TOKEN", &self.token)
            .env("CNOVA_HUB", format!("http://127.0.0.1:{}", self.hub_ports[0]))
            .stdin(Stdio::null());
        command
    }

    /// What a shell on the board sets so that `cnova` finds the hub's API, where the board can reach it.
    pub(super) fn administrator_on_board(&self) -> Option<String> {
        let (seen, api, token) = (&self.place.seen, self.hub_ports[0], &self.token);
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
