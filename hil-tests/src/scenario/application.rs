//! What the scenarios deploy: one workload of each runtime, small enough for a small board.

use std::path::Path;
use std::process::Command;

use cnova_oci::Platform;
use cnova_oci::testing::{ImageBuilder, LayerBuilder};
use serde_json::json;

use super::{Done, Trouble};

/// Bytes of a variable that only makes a twin large.
const PADDING_BYTES: usize = 32_000;
/// The application's name.
pub const NAME: &str = "line";
/// Sleeps a second at a time, for ever.
const WASM: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; A subscription at 0 (WASI preview 1): the monotonic clock at 16, nanoseconds at 24.
  (data (i32.const 16) "\01\00\00\00\00\00\00\00\00\ca\9a\3b\00\00\00\00")
  (func (export "_start") (loop $on
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))) (br $on))))"#;

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inference {
    /// The processor.
    Processor,
    /// An accelerator of this class or kind.
    Accelerator(&'static str),
}

/// An application of the scenarios.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// Its name.
    pub name: &'static str,
    /// Changes the twin, and starts its workloads anew.
    pub version: usize,
    /// Whether only an attested node may have it.
    pub attested: bool,
    /// Variables of 32,000 bytes that make its twin large.
    pub padding: usize,
    /// What it computes, if it is about that; else it is one workload of each runtime.
    pub inference: Option<Inference>,
}

impl Application {
    /// One workload of each runtime, for attested nodes only.
    #[must_use]
    pub fn line(version: usize) -> Self {
        Self {
            name: NAME,
            version,
            attested: true,
            padding: 0,
            inference: None,
        }
    }

    /// A model that is computed again and again.
    #[must_use]
    pub fn inference(on: Inference) -> Self {
        let name = match on {
            Inference::Processor => "infer-cpu",
            Inference::Accelerator(_) => "infer-npu",
        };
        Self {
            name,
            version: 0,
            attested: false,
            padding: 0,
            inference: Some(on),
        }
    }

    /// `application/name` of its workloads.
    #[must_use]
    pub fn workloads(&self) -> Vec<String> {
        let names: &[&str] = match self.inference {
            Some(_) => &["model"],
            None => &["wasm", "container", "ebpf"],
        };
        names.iter().map(|name| format!("{}/{name}", self.name)).collect()
    }

    /// Its manifest. `artifact` says what to write for the artifact of a runtime, such as `file: w.wasm`.
    #[must_use]
    pub fn manifest(&self, site: &str, artifact: impl Fn(&str) -> String) -> String {
        let trust = if self.attested { ", trust: attested" } else { "" };
        let placement = format!("    placement: {{site: \"{site}\", replicas: each{trust}}}\n");
        let head = format!(
            "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: {}}}\nworkloads:\n",
            self.name
        );
        let version = self.version;
        if let Some(on) = self.inference {
            let accelerator = match on {
                Inference::Processor => String::new(),
                Inference::Accelerator(kind) => format!("    accelerators: [{kind}]\n"),
            };
            return format!(
                "{head}  - name: model\n    runtime: wasm\n    artifact: {{{}}}\n    resources: {{memory: 48MiB}}\n    \
                 grants: {{nn: true}}\n{accelerator}{placement}",
                artifact(self.name)
            );
        }
        let variable = |n: usize| format!(", PADDING_{n}: \"{}\"", "x".repeat(PADDING_BYTES));
        let padding: String = (0..self.padding).map(variable).collect();
        // A master on the list that is another one in each version.
        let master = format!("0a{:06x}", version & 0xff_ffff);
        format!(
            "{head}  - name: wasm\n    runtime: wasm\n    artifact: {{{}}}\n    resources: {{memory: 16MiB}}\n    \
             env: {{VERSION: \"{version}\"{padding}}}\n{placement}  - name: container\n    runtime: container\n    \
             artifact: {{{}}}\n    resources: {{memory: 16MiB}}\n    env: {{VERSION: \"{version}\"}}\n    \
             settings: {{user: \"1000:1000\", probe: {{http: {{port: 8080, path: /index.html}}}}}}\n{placement}  - name: ebpf\n    \
             runtime: ebpf\n    artifact: {{{}}}\n    resources: {{memory: 8MiB}}\n    \
             settings: {{programs: [{{name: fieldbus_watch, kind: socket-filter, attach: lo}}], log: events, \
             init: {{masters: {{\"{master}\": \"01\"}}}}}}\n{placement}",
            artifact("wasm"),
            artifact("container"),
            artifact("ebpf"),
        )
    }
}

/// Writes what the manifests name into the folder: `wasm.wasm`, `container.tar`, `ebpf.o`, `infer-cpu.wasm`,
/// `infer-npu.wasm`. `architecture` is that of the board as an image names it: `amd64` or `arm64`; `busybox` a static one
/// for it.
///
/// # Errors
/// What is missing on this machine.
pub fn write_artifacts(folder: &Path, architecture: &str, busybox: &[u8]) -> Done {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| Trouble::failed(format!("{}: {e}", path.display())))
    };
    let compiled = |text: &str| wat::parse_str(text).map_err(Trouble::failed);
    write("wasm.wasm", &compiled(WASM)?)?;
    write(
        "infer-cpu.wasm",
        &compiled(&super::inference::guest(Inference::Processor))?,
    )?;
    write(
        "infer-npu.wasm",
        &compiled(&super::inference::guest(Inference::Accelerator("npu")))?,
    )?;
    let layer = LayerBuilder::new()
        .folder("bin", 0o755)
        .file("bin/busybox", 0o755, busybox)
        .symlink("bin/httpd", "busybox")
        .folder("www", 0o755)
        .file("www/index.html", 0o644, b"<h1>line</h1>\n");
    let platform = Platform {
        os: "linux".into(),
        architecture: architecture.to_owned(),
        variant: String::new(),
    };
    ImageBuilder::new()
        .layer(layer)
        .platform(platform)
        .config(json!({"Cmd": ["/bin/httpd", "-f", "-p", "8080", "-h", "/www"]}))
        .write_tar(&folder.join("container.tar"))
        .map_err(Trouble::failed)?;
    watcher(folder)
}

/// The example's object.
fn watcher(folder: &Path) -> Done {
    let script = super::targets::repository().join("examples/fieldbus-watch/build.sh");
    let made = Command::new(&script).arg(folder).output();
    let made = made.map_err(|e| Trouble::failed(format!("{}: {e}", script.display())))?;
    if !made.status.success() {
        return Err(Trouble::Unsupported(
            String::from_utf8_lossy(&made.stderr).trim().to_owned(),
        ));
    }
    std::fs::rename(folder.join("fieldbus_watch.o"), folder.join("ebpf.o")).map_err(Trouble::failed)
}
