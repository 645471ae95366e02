//! Images and bundles of the plant's board, by `firmware-images/build`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::application::write_artifacts;
use super::targets::repository;
use super::{Done, Trouble};

/// What computes models; left out of an image where it was not built.
const WORKER: &str = "cnova-wasm-nn";
/// The command line tool, which a board in a plant has no need of.
pub(super) const CLI: &str = "cnova";
const RUNTIMES: [&str; 3] = ["cnova-runtime-wasm", "cnova-runtime-container", "cnova-runtime-ebpf"];

/// What goes into an image of a plant.
#[derive(Clone, Debug)]
pub(super) struct Builder {
    /// The board's name.
    pub(super) board: String,
    /// Its programs.
    pub(super) programs: PathBuf,
    /// The plant's trust bundle.
    pub(super) trust_bundle: String,
    /// The agent's configuration.
    pub(super) config: String,
    /// Where images go.
    pub(super) folder: PathBuf,
}

impl Builder {
    /// A disk.
    pub(super) fn disk(&self, token: Option<&str>) -> Done<PathBuf> {
        let token = token.map(|file| ["--token", file]);
        self.build(
            &self.folder,
            &self.runtimes(),
            token.as_ref().map_or(&[], |t| t.as_slice()),
        )?;
        Ok(self.folder.join("disk.img"))
    }

    /// The bundle of another system; one that is no good lacks what its workloads need.
    pub(super) fn bundle(&self, version: &str, is_good: bool) -> Done<PathBuf> {
        let out = self.folder.join(version);
        let file = out.join(format!("system-{version}.cnova"));
        if !file.is_file() {
            let runtimes = if is_good { self.runtimes() } else { Vec::new() };
            self.build(&out, &runtimes, &["--bundle", "--version", version])?;
        }
        Ok(file)
    }

    fn has(&self, program: &str) -> bool {
        self.programs.join(program).is_file()
    }

    fn runtimes(&self) -> Vec<&'static str> {
        let worker = self.has(WORKER).then_some(WORKER);
        RUNTIMES.into_iter().chain(worker).collect()
    }

    fn build(&self, out: &Path, runtimes: &[&str], more: &[&str]) -> Done {
        let mut build = Command::new(repository().join("firmware-images/build"));
        build.arg(&self.board).arg("--bin").arg(&self.programs);
        build.args(["--config", &self.config, "--trust-bundle", &self.trust_bundle]);
        build.arg("--out").arg(out).arg("--console");
        build.args(["--runtimes", &runtimes.join(",")]).args(more);
        if self.has(CLI) {
            build.args(["--tools", CLI]);
        }
        let built = build
            .output()
            .map_err(|e| Trouble::failed(format!("firmware-images/build: {e}")))?;
        match built.status.success() {
            true => Ok(()),
            false => {
                let why = String::from_utf8_lossy(&built.stderr);
                Err(Trouble::Failed(format!("no image for {}: {}", self.board, why.trim())))
            }
        }
    }

    /// What is deployed, with a busybox of the board's own architecture out of its image.
    pub(super) fn artifacts(&self, folder: &Path, architecture: &str) -> Done {
        if folder.join("ebpf.o").is_file() {
            return Ok(());
        }
        fs::create_dir_all(folder).map_err(Trouble::failed)?;
        let root = self.folder.join("root.img");
        let busybox = match root.is_file() {
            true => Command::new("unsquashfs")
                .arg("-cat")
                .args([root.as_path(), Path::new("usr/bin/busybox")])
                .output()
                .map(|o| o.stdout),
            false => fs::read("/bin/busybox"),
        };
        let busybox = busybox.map_err(|e| Trouble::failed(format!("busybox for {architecture}: {e}")))?;
        write_artifacts(folder, architecture, &busybox)
    }
}
