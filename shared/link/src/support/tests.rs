//! What is in a bundle, and what is not.

use super::*;

fn unpacked(path: &Path) -> std::collections::BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(path).unwrap()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

fn bundle(dir: &Path, fill: impl FnOnce(&mut Bundle)) -> std::collections::BTreeMap<String, String> {
    let path = dir.join("bundle.tar.gz");
    let mut bundle = Bundle::create(&path, "test", "1", 7).unwrap();
    fill(&mut bundle);
    bundle.finish().unwrap();
    unpacked(&path)
}

#[test]
fn settings_are_in_by_their_names_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let text = "# password of the plant: PLANTED-1\nnode = \"plc-1\"\npassword = \"PLANTED-2\"\n[parent]\nnode = \"gw\"\n\
                secret = { value = \"PLANTED-3\" }\n[labels]\nhall = \"7\"\n[[devices]]\nname = \"scale\"\npin = \"PLANTED-4\"\n\
                [nodes]\nx = \"PLANTED-5\"\n";
    fs::write(&path, text).unwrap();
    fs::create_dir(dir.path().join("agent.d")).unwrap();
    fs::write(
        dir.path().join("agent.d/10.toml"),
        "node = \"plc-2\"\ntoken = [\"PLANTED-6\"]\n",
    )
    .unwrap();
    fs::write(dir.path().join("agent.d/20.toml"), "token PLANTED-7").unwrap();
    let harmless = ["node", "parent.node", "labels.*", "devices.name"];
    let found = bundle(dir.path(), |b| add_settings(b, &path, &harmless).unwrap());
    let all: String = found.values().cloned().collect();
    assert!(!all.contains("PLANTED"), "{all}");
    let main = &found["cnova-support/settings/agent.toml"];
    for part in ["node = \"plc-1\"", "node = \"gw\"", "hall = \"7\"", "name = \"scale\""] {
        assert!(main.contains(part), "{main}");
    }
    assert!(found["cnova-support/settings/10.toml"].contains("plc-2"));
    let manifest = &found["cnova-support/MANIFEST.json"];
    for part in [
        "agent.toml: password",
        "agent.toml: parent.secret.value",
        "10.toml: token",
        "it is not TOML",
    ] {
        assert!(manifest.contains(part), "{manifest}");
    }
}

#[test]
fn files_have_a_bound_and_what_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long");
    fs::write(&long, vec![b'x'; FILE_BYTES_MAX as usize + 1]).unwrap();
    let found = bundle(dir.path(), |b| {
        b.add_file("long", &long).unwrap();
        b.add_file("none", &dir.path().join("none")).unwrap();
        b.add_file("uptime", Path::new("/proc/uptime")).unwrap();
        for _ in 0..BUNDLE_BYTES_MAX / FILE_BYTES_MAX {
            b.add_file("more", &long).unwrap();
        }
        add_machine(b, dir.path()).unwrap();
        add_folder(b, dir.path()).unwrap();
    });
    assert_eq!(found["cnova-support/long"].len() as u64, FILE_BYTES_MAX);
    assert!(!found["cnova-support/uptime"].is_empty());
    let manifest = &found["cnova-support/MANIFEST.json"];
    for part in ["\"cut\": true", "No such file", "the bundle is full", "/proc/cmdline"] {
        assert!(manifest.contains(part), "{manifest}");
    }
    assert!(found["cnova-support/machine.txt"].contains("== /proc/meminfo\nMemTotal"));
    assert!(found["cnova-support/files.txt"].contains(" long"));
    // One that is there is never written over.
    let again = Bundle::create(&dir.path().join("bundle.tar.gz"), "test", "1", 7);
    assert!(again.unwrap_err().to_string().contains("--out"));
}

#[test]
fn a_copy_of_a_database_is_private_and_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("a.db");
    fs::write(&database, "pages").unwrap();
    fs::write(dir.path().join("a.db-wal"), "log").unwrap();
    let copy = Snapshot::of(&database).unwrap();
    assert_eq!(fs::read_to_string(copy.path()).unwrap(), "pages");
    assert_eq!(fs::read_to_string(with_wal(copy.path())).unwrap(), "log");
    let folder = copy.path().parent().unwrap().to_owned();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&folder).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    drop(copy);
    assert!(!folder.exists());
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        2,
        "nothing beside the database"
    );
    assert!(Snapshot::of(&dir.path().join("none")).is_err());
}

fn with_wal(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", path.display()))
}
