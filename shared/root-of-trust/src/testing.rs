//! A TPM in software for tests: [swtpm](https://github.com/stefanberger/swtpm) with a maker of its own.
//!
//! Everything here panics when swtpm is installed and does not do as it should: a test cannot go on then.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tss_esapi::Context;
use tss_esapi::constants::StartupType;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::tcti_ldr::TctiNameConf;

use crate::tpm::{EkKind, TpmConfig};

mod certificates;
mod interposer;

pub use interposer::{Cut, Interposer};

/// Below the ports that Linux gives to outgoing connections, so that none takes the port of a TPM that is being restarted.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How long swtpm has to begin answering or to end.
const SWTPM_LIMIT: Duration = Duration::from_secs(30);
const TOOLS: [&str; 3] = ["swtpm", "swtpm_setup", "swtpm_localca"];

/// Who makes TPMs and signs the certificates of their endorsement keys. Several TPMs may have one maker.
pub struct Maker {
    folder: TempDir,
    certificate: Vec<u8>,
}

impl Maker {
    /// A maker with a key of its own.
    ///
    /// # Panics
    /// When the folder cannot be written.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("cnova-maker-").tempdir();
        let folder = must(folder, "a folder for the maker");
        let certificate = certificates::write_authority(folder.path());
        Self { folder, certificate }
    }

    /// Its certificate, DER: the trust anchor of the endorsement keys of its TPMs.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }
}

impl Default for Maker {
    fn default() -> Self {
        Self::new()
    }
}

/// A running swtpm with its state. It ends when this is dropped.
pub struct Swtpm {
    folder: TempDir,
    ports: Ports,
    child: Option<Child>,
    maker: Vec<u8>,
}

impl Swtpm {
    /// A new TPM by a new maker, with the certificate of one endorsement key ([`EkKind::P384`]: as swtpm makes them, with
    /// one for RSA-2048 beside it). `None`, and a line on stderr, where swtpm is not installed: the test must then end.
    ///
    /// # Panics
    /// When swtpm is installed and does not start.
    #[must_use]
    pub fn start(kind: EkKind) -> Option<Self> {
        is_installed().then(|| Self::made(&Maker::new(), Some(kind)))
    }

    /// As [`Self::start`], by this maker; with `None` without any certificate.
    ///
    /// # Panics
    /// When swtpm is installed and does not start.
    #[must_use]
    pub fn start_by(maker: &Maker, kind: Option<EkKind>) -> Option<Self> {
        is_installed().then(|| Self::made(maker, kind))
    }

    fn made(maker: &Maker, kind: Option<EkKind>) -> Self {
        let folder = must(tempfile::Builder::new().prefix("cnova-swtpm-").tempdir(), "a folder");
        let mut setup = Command::new("swtpm_setup");
        setup
            .args([
                "--tpm2",
                "--create-ek-cert",
                "--ecc",
                "--pcr-banks",
                "sha256",
                "--not-overwrite",
            ])
            .arg("--tpmstate")
            .arg(format!("dir://{}", folder.path().display()))
            .arg("--config")
            .arg(maker.folder.path().join("setup.conf"));
        run(&mut setup);
        let mut tpm = Self {
            folder,
            ports: Ports::take(),
            child: None,
            maker: maker.certificate.clone(),
        };
        tpm.launch();
        if kind != Some(EkKind::P384) {
            certificates::arrange(&mut tpm.context(), maker.folder.path(), kind);
            tpm.reboot();
        }
        tpm
    }

    /// How tss-esapi and [`TpmConfig`] reach it.
    #[must_use]
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.ports.data)
    }

    /// The usual configuration for it.
    #[must_use]
    pub fn config(&self) -> TpmConfig {
        TpmConfig::new(self.tcti())
    }

    /// The maker's certificate, DER.
    #[must_use]
    pub fn maker_certificate(&self) -> &[u8] {
        &self.maker
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A command of tpm2-tools that talks to it.
    #[must_use]
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("TPM2TOOLS_TCTI", self.tcti()).env("TSS2_LOG", "all+NONE");
        command
    }

    /// Writes bytes to a new NV index with the platform's rights, as the maker of a TPM does.
    ///
    /// # Panics
    /// When the TPM does not take them.
    pub fn write_nv(&self, index: u32, bytes: &[u8]) {
        let mut context = self.context();
        context.set_sessions((Some(AuthSession::Password), None, None));
        certificates::define(&mut context, index, bytes);
    }

    /// Another client's context, as another program on the machine would have one.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn context(&self) -> Context {
        let name: TctiNameConf = must(self.tcti().parse(), "a TCTI");
        must(Context::new(name), "a context")
    }

    /// Kills it (SIGKILL), as if the power failed.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same ports, killing it first if it runs. NV memory and persistent objects are as they were,
    /// registers and transient objects are gone.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// Shuts it down in order and starts it again, as a machine does that boots: its registers begin anew.
    ///
    /// # Panics
    /// When it does not answer, end or start.
    pub fn reboot(&mut self) {
        must(self.context().shutdown(StartupType::Clear), "TPM2_Shutdown");
        self.signal(Signal::TERM);
        if let Some(mut child) = self.child.take() {
            let begun = Instant::now();
            while !matches!(child.try_wait(), Ok(Some(_))) {
                assert!(begun.elapsed() < SWTPM_LIMIT, "swtpm does not end");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.launch();
    }

    /// Starts it again for a virtual machine, killing it first if it runs: QEMU reaches it by the socket whose path is
    /// returned, and nothing else does. It ends with the machine's power; starting it again is switching it on.
    ///
    /// # Panics
    /// When it does not start.
    pub fn serve_machine(&mut self) -> PathBuf {
        self.kill();
        let socket = self.folder.path().join("machine");
        let _ = fs::remove_file(&socket);
        let child = self
            .command()
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--terminate")
            .spawn();
        let child = self.child.insert(must(child, "swtpm"));
        let begun = Instant::now();
        while !socket.exists() {
            let alive = matches!(child.try_wait(), Ok(None)) && begun.elapsed() < SWTPM_LIMIT;
            assert!(alive, "swtpm does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        socket
    }

    /// Makes it hang (SIGSTOP): connections are taken and never answered.
    pub fn stop_answering(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends [`Self::stop_answering`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It is our child and not yet waited for, so the id is its own.
            let _ = kill_process(pid, signal);
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("swtpm.log")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", self.folder.path().display()))
            .arg("--log")
            .arg(format!("file={}", self.log().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn launch(&mut self) {
        let log = self.log();
        let (data, control) = (self.ports.data, self.ports.data + 1);
        let child = self
            .command()
            .arg("--server")
            .arg(format!("type=tcp,port={data},bindaddr=127.0.0.1,disconnect"))
            .arg("--ctrl")
            .arg(format!("type=tcp,port={control},bindaddr=127.0.0.1"))
            .args(["--flags", "not-need-init,startup-clear"])
            .spawn();
        let child = self.child.insert(must(child, "swtpm"));
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, data)).is_err() {
            let alive = matches!(child.try_wait(), Ok(None)) && begun.elapsed() < SWTPM_LIMIT;
            assert!(
                alive,
                "swtpm does not answer: {}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two neighbouring ports of this machine (libtss2 wants the control port right behind the other), kept from other tests
/// by a lock for as long as the TPM lives, so that a restarted one finds them free.
struct Ports {
    data: u16,
    _lock: File,
}

impl Ports {
    fn take() -> Self {
        let pairs = PORTS.len() as u32 / 2;
        let first = std::process::id().wrapping_mul(7919) % pairs;
        for i in 0..pairs {
            let pair = (first + i) % pairs;
            let data = PORTS.start + 2 * pair as u16;
            if let Some(lock) = lock(data)
                && [data, data + 1]
                    .iter()
                    .all(|p| TcpListener::bind((Ipv4Addr::LOCALHOST, *p)).is_ok())
            {
                return Self { data, _lock: lock };
            }
        }
        panic!("no two neighbouring ports are free from {PORTS:?}");
    }
}

fn lock(port: u16) -> Option<File> {
    let path = std::env::temp_dir().join(format!("cnova-swtpm-{port}.lock"));
    let file = File::options().create(true).append(true).open(path).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

fn is_installed() -> bool {
    let missing = |tool: &&&str| find_in_path(tool).is_none();
    match TOOLS.iter().find(missing) {
        None => true,
        Some(tool) => {
            eprintln!("SKIPPED: {tool} is not installed (Debian: apt install swtpm swtpm-tools); nothing was tested");
            false
        }
    }
}

fn find_in_path(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|p| p.join(tool)).find(|p| p.is_file())
}

fn run(command: &mut Command) {
    let output = must(command.output(), "a tool of swtpm");
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn must<T, E: std::fmt::Display>(result: Result<T, E>, what: &str) -> T {
    result.unwrap_or_else(|e| panic!("{what}: {e}"))
}

fn write(path: &Path, text: &str) {
    must(fs::write(path, text), "a file of the maker");
}
