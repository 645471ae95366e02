//! The step with a container, an eBPF program, and workloads that do not run and say why.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use cnova_oci::testing::{ImageBuilder, LayerBuilder};
use serde_json::json;

use super::DemoError;
use super::fleet::Fleet;
use super::story::say;

/// The applications of this step.
pub(super) const APPS: [&str; 3] = ["panel", "fieldbus-watch", "later"];
/// Where Modbus/TCP is spoken.
const MODBUS: &str = "127.0.0.1:502";

const PAGE: &str = "<h1>line 2</h1>\n";

/// A web page from a container, in a network namespace of its own.
const PANEL: &str = r#"apiVersion: cnova/v1
kind: Application
metadata: {name: panel}
workloads:
  - name: web
    runtime: container
    artifact: {file: panel.tar}
    resources: {memory: 16MiB}
    settings:
      user: "1000:1000"
      probe: {http: {port: 8080, path: /index.html}}
    placement: {site: plant-7/line-2/plc-2, replicas: 1}
"#;

/// Two workloads that cannot run now: one waits for the night, one for an accelerator that no node has.
const LATER: &str = r#"apiVersion: cnova/v1
kind: Application
metadata: {name: later}
workloads:
  - name: night-report
    runtime: wasm
    artifact: {digest: "DIGEST"}
    resources: {memory: 1MiB}
    schedule: {cron: "CRON", zone: Europe/Berlin, for: 1h}
    placement: {site: plant-7/line-2/plc-2, replicas: 1}
  - name: vision
    runtime: wasm
    artifact: {digest: "DIGEST"}
    resources: {memory: 1MiB}
    accelerators: [npu]
    placement: {site: "plant-7/**", replicas: 1}
"#;

/// Tells it; false where this machine cannot.
pub(super) fn tell(fleet: &Fleet) -> Result<bool, DemoError> {
    if !rustix::process::geteuid().is_root() {
        say("  left out: namespaces, control groups and eBPF need root; run the demo as root to see it");
        return Ok(false);
    }
    panel(fleet)?;
    watcher(fleet)?;
    later(fleet)?;
    fleet.show(&["get", "workloads"])?;
    say("  what a person in front of plc-2 sees, without any network:");
    let config = fleet.dir().join("plc-2.toml");
    say(&format!("  $ cnova-agent status --config {}", config.display()));
    let out = Command::new(fleet.options().bin.join("cnova-agent"))
        .args(["status", "--config"])
        .arg(&config)
        .output()
        .map_err(|e| wrong("cnova-agent status", &e))?;
    if !out.status.success() {
        return Err(DemoError::Wrong(String::from_utf8_lossy(&out.stderr).into_owned()));
    }
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .for_each(|l| say(&format!("  {l}")));
    Ok(true)
}

fn wrong(what: &str, error: &dyn std::fmt::Display) -> DemoError {
    DemoError::Wrong(format!("{what}: {error}"))
}

fn file(path: &Path, bytes: &[u8]) -> Result<(), DemoError> {
    fs::write(path, bytes).map_err(|source| DemoError::File {
        path: path.to_owned(),
        source,
    })
}

fn folder(fleet: &Fleet, name: &str) -> Result<PathBuf, DemoError> {
    let dir = fleet.dir().join(name);
    fs::create_dir_all(&dir).map_err(|source| DemoError::File {
        path: dir.clone(),
        source,
    })?;
    Ok(dir)
}

fn panel(fleet: &Fleet) -> Result<(), DemoError> {
    let dir = folder(fleet, "panel")?;
    let layer = LayerBuilder::new()
        .busybox(&["sh", "httpd"])
        .map_err(|e| wrong("busybox (Debian: busybox-static)", &e))?
        .file("www/index.html", 0o644, PAGE.as_bytes());
    ImageBuilder::new()
        .layer(layer)
        .config(json!({"Cmd": ["/bin/httpd", "-f", "-vv", "-p", "8080", "-h", "/www"]}))
        .write_tar(&dir.join("panel.tar"))
        .map_err(|e| wrong("an image for the demo", &e))?;
    file(&dir.join("panel.yaml"), PANEL.as_bytes())?;
    say(
        "  a container: an OCI image of Debian's busybox with a web page, asked for its health over HTTP in its own network",
    );
    fleet.show(&["apply", &dir.display().to_string(), "--wait=60"])?;
    fleet.wait(30, "the container is asked for its page", |f| {
        f.cnova(&["logs", "panel/web", "--node", "plc-2"])
            .is_ok_and(|t| t.contains("response:200"))
    })?;
    fleet.wait(30, "the container says that it is healthy", |f| {
        f.cnova(&["get", "workloads"]).is_ok_and(|t| !t.contains("unhealthy"))
    })?;
    fleet.show(&["logs", "panel/web", "--node", "plc-2", "--lines", "2"])
}

/// The example as it is, but watching the loopback interface on plc-3, for there is no mirror port here.
fn watcher(fleet: &Fleet) -> Result<(), DemoError> {
    let example = fleet.options().examples.join("fieldbus-watch");
    let read = |path: PathBuf| fs::read(&path).map_err(|source| DemoError::File { path, source });
    let text = String::from_utf8_lossy(&read(example.join("fieldbus-watch.yaml"))?).into_owned();
    let here = text
        .replace("attach: mirror, promiscuous: true", "attach: lo")
        .replace("site: plant-7/line-2/**", "site: plant-7/line-2/plc-3")
        .replace("labels: {role: watcher}", "labels: {role: plc}");
    let dir = folder(fleet, "fieldbus-watch")?;
    folder(fleet, "fieldbus-watch/build")?;
    file(
        &dir.join("build/fieldbus_watch.o"),
        &read(example.join("build/fieldbus_watch.o"))?,
    )?;
    file(&dir.join("fieldbus-watch.yaml"), here.as_bytes())?;
    say("  an eBPF program: counts Modbus/TCP and flags writes from masters that are not on its list");
    fleet.show(&["apply", &dir.display().to_string(), "--wait=60"])?;
    let spoken = speak_modbus().map_err(|e| wrong(MODBUS, &e))?;
    say(&format!("  somebody writes a register: {spoken}"));
    fleet.wait(20, "the write is flagged", |f| {
        f.cnova(&["logs", "fieldbus-watch/watcher", "--node", "plc-3"])
            .is_ok_and(|t| t.contains("write from unknown master"))
    })?;
    fleet.show(&["logs", "fieldbus-watch/watcher", "--node", "plc-3", "--lines", "3"])
}

/// A real connection on which a master writes 7 into register 40 of unit 1, and a device that says so.
fn speak_modbus() -> std::io::Result<String> {
    // Transaction 1, protocol 0, 6 bytes, unit 1, write single register, address 40, value 7.
    const WRITE: [u8; 12] = [0, 1, 0, 0, 0, 6, 1, 6, 0, 40, 0, 7];
    let listener = TcpListener::bind(MODBUS)?;
    let device = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut request = [0; 12];
        stream.read_exact(&mut request)?;
        stream.write_all(&request)
    });
    let mut master = TcpStream::connect(MODBUS)?;
    master.write_all(&WRITE)?;
    let mut answer = [0; 12];
    master.read_exact(&mut answer)?;
    device
        .join()
        .map_err(|_| std::io::Error::other("the device's thread ended"))??;
    Ok(format!("{} -> {MODBUS}, function 6, register 40", master.local_addr()?))
}

fn later(fleet: &Fleet) -> Result<(), DemoError> {
    let info = fleet.json(&["describe", "application", super::fleet::APP])?;
    let text = info.to_string();
    let digest = text
        .find("sha256:")
        .and_then(|at| text.get(at..at + 71))
        .ok_or_else(|| DemoError::Wrong("the application names no artifact".into()))?;
    // Twelve hours from now in any zone that the demo is run in: never open while it is looked at.
    let hours = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() / 3600);
    let cron = format!("0 {} * * *", (hours + 12) % 24);
    let dir = folder(fleet, "later")?;
    let manifest = LATER.replace("DIGEST", digest).replace("CRON", &cron);
    file(&dir.join("later.yaml"), manifest.as_bytes())?;
    say("  two that cannot run now, and why:");
    fleet.show(&["apply", &dir.display().to_string()])?;
    fleet.wait(30, "plc-2 says why the night report waits", |f| {
        f.cnova(&["get", "workloads"])
            .is_ok_and(|t| t.contains("window is closed"))
    })?;
    fleet.show(&["explain", "workload", "later/night-report"])?;
    fleet.show(&["explain", "workload", "later/vision"])
}
