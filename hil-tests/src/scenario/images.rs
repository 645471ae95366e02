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

    /// What is deployed, with a busybox of the board's own architecture: out of its image, or Debian's where that was made elsewhere.
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
            false if architecture == debian_architecture() => fs::read("/bin/busybox"),
            false => debian_busybox(folder, architecture),
        };
        let busybox = busybox.map_err(|e| Trouble::failed(format!("busybox for {architecture}: {e}")))?;
        if !is_for(&busybox, architecture) {
            return Err(Trouble::Failed(format!(
                "the busybox for the board's containers is no program for {architecture}"
            )));
        }
        write_artifacts(folder, architecture, &busybox)
    }
}

/// Debian's name of this machine's architecture.
fn debian_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Debian's busybox for another architecture.
fn debian_busybox(folder: &Path, architecture: &str) -> std::io::Result<Vec<u8>> {
    let apt = repository().join("scripts/foreign-apt");
    // Older releases of Debian have it in /bin.
    let script = "set -e; \"$1\" \"$2\" update; \"$1\" \"$2\" download busybox-static; \
                  dpkg-deb --extract busybox-static_*.deb busybox; cat busybox/usr/bin/busybox busybox/bin/busybox 2>/dev/null || true";
    let done = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(apt)
        .arg(architecture)
        .current_dir(folder)
        .output()?;
    match done.status.success() {
        true => Ok(done.stdout),
        false => Err(std::io::Error::other(format!(
            "`scripts/foreign-apt {architecture} download busybox-static` does not bring it: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        ))),
    }
}

/// Whether this is a program (ELF, 64 bit, little-endian) for an architecture.
fn is_for(program: &[u8], architecture: &str) -> bool {
    let machine: u16 = match architecture {
        "amd64" => 62,
        "arm64" => 183,
        _ => return false,
    };
    program.starts_with(b"\x7fELF\x02\x01") && program.get(18..20) == Some(&machine.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_another_architecture_is_not_taken() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(is_for(&own, debian_architecture()));
        let other = if debian_architecture() == "amd64" {
            "arm64"
        } else {
            "amd64"
        };
        assert!(!is_for(&own, other) && !is_for(b"", other) && !is_for(&own, "mips"));
    }
}
