//! The same container for an OCI runtime: the description is the one that our runtime itself hands to an installed
//! runtime for `isolation: sandbox`, the root file system is an overlay of the layer that it unpacked.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cnova_ral::{Spec, run_command, write_spec};
use serde_json::{Value, json};

use super::super::wrong;
use crate::demo::DemoError;

/// First id of containers on the host, where no configuration says otherwise.
const ID_BASE: u32 = 1_000_000;
/// Where our runtime has the container's files.
const TREE: &str = "/run/cnova-container";

/// A folder with `config.json` and `rootfs`.
pub(super) struct Bundle {
    dir: PathBuf,
    config: Value,
}

impl Bundle {
    /// Makes it for what the spec says; the layer is in the cache already.
    pub(super) fn make(dir: &Path, runtime: &Path, spec: &Spec) -> Result<Bundle, DemoError> {
        for name in ["scratch", "rootfs", "files"] {
            fs::create_dir_all(dir.join(name)).map_err(wrong)?;
        }
        let description = described(dir, runtime, spec)?;
        for name in ["hosts", "hostname", "resolv.conf"] {
            fs::write(dir.join("files").join(name), "127.0.0.1\tlocalhost\n").map_err(wrong)?;
        }
        let text = description
            .replace(&format!("{TREE}/rootfs"), &dir.join("rootfs").display().to_string())
            .replace(&format!("{TREE}/files"), &dir.join("files").display().to_string());
        let mut config: Value = serde_json::from_str(&text).map_err(wrong)?;
        // The limits that our runtime sets by itself.
        config["linux"]["resources"] = json!({
            "memory": {"limit": spec.limits.memory_bytes}, "pids": {"limit": 64},
            "devices": [{"allow": false, "access": "rwm"}],
        });
        let cache = spec.cache.as_ref().ok_or_else(|| wrong("the spec names no cache"))?;
        let layer = only_entry(&cache.join("layers"))?;
        let bundle = Bundle {
            dir: dir.to_owned(),
            config,
        };
        bundle.mount(&layer)?;
        Ok(bundle)
    }

    /// For the next container: its program and its control group.
    pub(super) fn tell(&self, words: &[&str], group: &str) -> Result<(), DemoError> {
        let mut config = self.config.clone();
        config["process"]["args"] = json!(words);
        config["linux"]["cgroupsPath"] = group.into();
        fs::write(self.dir.join("config.json"), config.to_string()).map_err(wrong)
    }

    /// `RUNTIME run`, without what it prints to.
    pub(super) fn command(&self, runtime: &str, id: &str) -> Command {
        let mut command = Command::new(runtime);
        command
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default());
        command.arg("--root").arg(self.root(runtime));
        command.args(["run", "--bundle"]).arg(&self.dir).arg(id);
        command.stdin(Stdio::null());
        command
    }

    /// Forgets a container that was killed.
    pub(super) fn forget(&self, runtime: &str, id: &str) {
        let mut command = Command::new(runtime);
        command
            .arg("--root")
            .arg(self.root(runtime))
            .args(["delete", "--force", id]);
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }

    fn root(&self, runtime: &str) -> PathBuf {
        // In memory, as these runtimes have it.
        Path::new("/run").join(format!("cnova-measure-{}", runtime.replace('/', "-")))
    }

    fn mount(&self, layer: &Path) -> Result<(), DemoError> {
        let scratch = self.dir.join("scratch");
        mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"], &scratch)?;
        let upper = scratch.join("upper");
        for name in ["upper", "work"] {
            fs::create_dir(scratch.join(name)).map_err(wrong)?;
        }
        chown(&upper, Some(ID_BASE), Some(ID_BASE)).map_err(wrong)?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).map_err(wrong)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layer.display(),
            upper.display(),
            scratch.join("work").display()
        );
        mount(&["-t", "overlay", "-o", &options, "overlay"], &self.dir.join("rootfs"))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for name in ["rootfs", "scratch"] {
            let _ = Command::new("umount").arg("-l").arg(self.dir.join(name)).status();
        }
        for runtime in ["crun", "runc"] {
            let _ = fs::remove_dir_all(self.root(runtime));
        }
    }
}

fn mount(words: &[&str], place: &Path) -> Result<(), DemoError> {
    let status = Command::new("mount").args(words).arg(place).status().map_err(wrong)?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| wrong(format!("mount on {} ended with {status}", place.display())))
}

/// What our runtime tells an installed one: a stand-in for that one keeps it and refuses.
fn described(dir: &Path, runtime: &Path, spec: &Spec) -> Result<String, DemoError> {
    let told = dir.join("told.json");
    let stand_in = dir.join("stand-in");
    let script = format!("#!/bin/sh\ncp {TREE}/bundle/config.json '{}'\nexit 1\n", told.display());
    fs::write(&stand_in, script).map_err(wrong)?;
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).map_err(wrong)?;
    let mut spec = spec.clone();
    spec.settings = json!({"isolation": "sandbox"});
    let state = dir.join("told-state");
    write_spec(&state, &spec).map_err(wrong)?;
    let mut command = run_command(runtime, &state).map_err(wrong)?;
    command.env("CNOVA_OCI_SANDBOX", &stand_in).status().map_err(wrong)?;
    fs::read_to_string(&told).map_err(|_| {
        let exit = cnova_ral::read_exit(&state).ok().flatten();
        wrong(format!("the container runtime described no container: {exit:?}"))
    })
}

fn only_entry(dir: &Path) -> Result<PathBuf, DemoError> {
    let mut entries = fs::read_dir(dir).map_err(wrong)?.flatten();
    match (entries.next(), entries.next()) {
        (Some(one), None) => Ok(one.path()),
        _ => Err(wrong(format!("{} does not hold exactly one layer", dir.display()))),
    }
}
