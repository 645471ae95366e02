//! Other systems for a board: their bundles, and what is told to its hub about them.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::update::{System, SystemAtHub};
use super::super::{Done, Trouble};
use super::{Hardware, Lab};

/// How long a new system has to become healthy, emulated on a busy machine; and one that never does.
const GOOD_WITHIN: &str = "240s";
const BAD_WITHIN: &str = "60s";

impl<H: Hardware> Lab<H> {
    /// Its bundle; the same is made once.
    pub(super) fn bundle(&mut self, system: &System) -> Done<PathBuf> {
        self.builder()?.bundle(system.version, system.is_good)
    }

    /// A manifest that offers a bundle.
    fn system_manifest(&mut self, bundle: &Path, system: &System) -> Done<String> {
        let site = self.site();
        let within = if system.is_good { GOOD_WITHIN } else { BAD_WITHIN };
        let folder = bundle.parent().unwrap_or(Path::new("."));
        let file = bundle.file_name().unwrap_or_default().to_string_lossy();
        let (tries, downgrade) = (system.tries, system.is_downgrade);
        let text = format!(
            "apiVersion: cnova/v1\nkind: System\nmetadata: {{name: os}}\nbundle: {{file: {file}}}\n\
             placement: {{site: \"{site}\"}}\nslots: {{tries: {tries}, downgrade: {downgrade}}}\nhealth: {{within: {within}, parent: true}}\n"
        );
        let path = folder.join("system.yaml");
        fs::write(&path, text).map_err(Trouble::failed)?;
        Ok(path.display().to_string())
    }

    pub(super) fn offer_bundle(&mut self, system: &System) -> Done {
        let bundle = self.bundle(system)?;
        let manifest = self.system_manifest(&bundle, system)?;
        self.plant()?.cnova(&["apply", &manifest]).map(drop)
    }

    pub(super) fn offer_damaged_bundle(&mut self, system: &System) -> Done<String> {
        let bundle = self.bundle(system)?;
        let mut bytes = fs::read(&bundle).map_err(Trouble::failed)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let damaged = self.plant()?.write("image/damaged/system.cnova", &bytes)?;
        let manifest = self.system_manifest(Path::new(&damaged), system)?;
        match self.plant()?.cnova(&["apply", &manifest]) {
            Err(Trouble::Failed(why)) if why.contains("its part Root has the digest") => Ok(why),
            Err(Trouble::Failed(why)) => Err(Trouble::Failed(format!("refused for another reason: {why}"))),
            Err(other) => Err(other),
            Ok(_) => Err(Trouble::failed("the hub took a bundle in which one byte is another")),
        }
    }

    pub(super) fn approve_bundle(&mut self, system: &System) -> Done {
        let bundle = self.bundle(system)?;
        let version = system.version.replace('.', "-");
        let (node, name) = (self.node(), format!("system-{version}-{}", self.flashes));
        let file = bundle.display().to_string();
        let plant = self.plant()?;
        plant.cnova(&["reference", "add", &name, "--from-node", &node, "--from-bundle", &file])?;
        Ok(())
    }

    pub(super) fn shown_system(&mut self) -> Done<SystemAtHub> {
        let node = self.node();
        let all = self.plant()?.json(&["get", "systems"])?;
        let here = &all[0]["nodes"][&node];
        let text = |key: &str| here[key].as_str().unwrap_or_default().to_owned();
        Ok(SystemAtHub {
            is_asked: here["asked"] == true,
            state: text("state"),
            reason: text("reason"),
            percent: here["percent"].as_u64().unwrap_or_default(),
        })
    }
}
