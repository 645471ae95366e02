//! What this runtime says about itself and about the kernel that it would run on.

use std::path::Path;

use cnova_ral::{Description, RAL_VERSION};

use crate::config::Config;

/// One line of JSON.
pub(crate) fn describe() -> String {
    let description = Description {
        ral: RAL_VERSION,
        runtime: "container".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        targets: target().into_iter().collect(),
        engine: String::new(),
        features: features(),
    };
    serde_json::json!(description).to_string()
}

fn target() -> Option<String> {
    cfg!(target_os = "linux").then(|| format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
}

fn features() -> Vec<String> {
    let mut features: Vec<String> = [
        "oci-image",
        "tar+gzip",
        "tar+zstd",
        "network-own",
        cnova_ral::SECRETS_FEATURE,
    ]
    .map(str::to_owned)
    .to_vec();
    if Path::new("/proc/self/ns/user").exists() {
        features.push("userns".into());
    }
    if Path::new("/proc/sys/kernel/seccomp").exists() {
        features.push("seccomp".into());
    }
    features.extend(crate::cgroup::version().map(str::to_owned));
    if !rustix::process::geteuid().is_root() {
        features.push("unusable:not-root".into());
    }
    if let Ok(config) = Config::read() {
        for (kind, names) in [("sandbox", &config.sandbox), ("vm", &config.vm)] {
            if let Some(found) = crate::external::find(names) {
                let name = found
                    .file_name()
                    .unwrap_or(found.as_os_str())
                    .to_string_lossy()
                    .into_owned();
                features.push(format!("{kind}:{name}"));
            }
        }
    }
    features
}
