//! Checks of the secrets that a workload is given. Whether there are such secrets, and whether it may have them, is the
//! hub's to say ([`crate::Hub`]): a manifest is judged here without one.

use serde_json::Value;

use super::checks::Checker;
use super::errors::quoted;
use super::model::RuntimeKind;

impl Checker<'_> {
    /// Everything of one workload that `wire_secrets.rs` describes.
    pub(super) fn secrets(&mut self, at: &str) {
        let list = format!("{at}/secrets");
        let count = self.items(&list);
        if count == 0 {
            return;
        }
        let runtime = self.text(&format!("{at}/runtime"));
        if runtime == Some(RuntimeKind::Ebpf.as_str()) {
            let message = "an eBPF program has no environment and no files that a secret could be given in".to_owned();
            let hint = "remove the secrets; a workload beside it can read them".to_owned();
            return self.push_at(&list, true, message, Some(hint));
        }
        let fields = |name: &str| -> Vec<String> { (0..count).map(|i| format!("{list}/{i}/{name}")).collect() };
        self.unique(&fields("env"), "variable");
        self.variables(at, &fields("env"));
        for path in fields("path") {
            self.mount_path(&path);
        }
        let mut paths = self.paths_of(at);
        let first = paths.len();
        paths.extend(fields("path"));
        self.unique_from(&paths, "path", first);
        if runtime == Some(RuntimeKind::Wasm.as_str()) {
            self.whole_folders(&paths, first);
            let dump = format!("{at}/settings/coreDump");
            if self.get(&dump) == Some(&Value::Bool(true)) {
                let message = "a core dump would put the workload's secrets on the node's disk".to_owned();
                self.push(&dump, message, Some("leave one of the two out".to_owned()));
            }
        }
    }

    /// Where the files and the volumes of a workload stand.
    fn paths_of(&self, at: &str) -> Vec<String> {
        let of = |list: &str| -> Vec<String> {
            let count = self.items(&format!("{at}/{list}"));
            (0..count).map(|i| format!("{at}/{list}/{i}/path")).collect()
        };
        [of("files"), of("volumes")].concat()
    }

    fn variables(&mut self, at: &str, pointers: &[String]) {
        for pointer in pointers {
            let Some(name) = self.text(pointer) else { continue };
            let plain = self.get(&format!("{at}/env")).and_then(|env| env.get(name));
            if plain.is_some() {
                let message = format!("the variable {} already has a value in env", quoted(name));
                self.push(pointer, message, Some("leave one of the two out".to_owned()));
            }
        }
    }

    /// Wasm is given whole folders: what else is in a secret's folder would be hidden.
    fn whole_folders(&mut self, pointers: &[String], first: usize) {
        let (others, secrets) = pointers.split_at(first);
        for pointer in secrets {
            let Some(path) = self.text(pointer) else { continue };
            let Some((folder, _)) = path.rsplit_once('/') else {
                continue;
            };
            let inside = |other: &str| {
                other
                    .strip_prefix(folder)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let hidden = others.iter().filter_map(|o| self.text(o)).find(|other| inside(other));
            if let Some(hidden) = hidden {
                let message = format!(
                    "Wasm is given whole folders, so that the secret in {} would hide {}",
                    quoted(if folder.is_empty() { "/" } else { folder }),
                    quoted(hidden)
                );
                let hint = "give secrets a folder of their own, such as /run/secrets".to_owned();
                self.push(pointer, message, Some(hint));
            }
        }
    }
}
