//! Images: real servers, shared layers, and those that are refused.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cnova_oci::testing::{ImageBuilder, LayerBuilder};
use cnova_oci::{Digest, Platform};
use cnova_ral::ExitReason;
use serde_json::json;
use tar::EntryType;

use crate::support::{Workload, busybox_layer, missing, wait_for};

#[test]
fn redis_answers() {
    if missing(&["/usr/bin/redis-server"]) {
        return;
    }
    // One executable under several names.
    let program = fs::canonicalize("/usr/bin/redis-server").unwrap();
    let layer = LayerBuilder::new()
        .host_program(&program)
        .unwrap()
        .symlink("redis-server", program.to_str().unwrap())
        .file("etc/passwd", 0o644, b"redis:x:999:999::/:/bin/sh\n");
    let words = json!({
        "Entrypoint": ["/redis-server"], "Cmd": ["--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"], "User": "redis",
    });
    let image = ImageBuilder::new().layer(layer).config(words).build();
    let settings = json!({
        "tmpfs": [{"path": "/data"}],
        "network": {"own": {"address": "10.213.80.2", "prefix": 30, "gateway": "10.213.80.1"}},
        "probe": {"tcp": 6379},
    });
    let mut workload = Workload::of(&image).settings(settings);
    workload.start_and_wait();
    wait_for(|| workload.health().healthy.then_some(()));
    let mut stream = TcpStream::connect("10.213.80.2:6379").unwrap();
    stream.write_all(b"SET k v\r\nGET k\r\nBGSAVE\r\nQUIT\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("+OK\r\n$1\r\nv\r\n+Background"),
        "{answer} {:?}",
        workload.log()
    );
    workload.stop(30_000);
    let exit = workload.exit();
    assert_eq!(
        (exit.code, exit.reason),
        (Some(0), ExitReason::Stopped),
        "{:?}",
        workload.log()
    );
}

#[test]
fn nginx_answers() {
    if missing(&["/usr/sbin/nginx"]) {
        return;
    }
    let config = b"daemon off; user www; error_log /dev/stderr; pid /run/nginx.pid; events {} \
        http { access_log /dev/stdout; client_body_temp_path /run/b; proxy_temp_path /run/p; fastcgi_temp_path /run/f; \
        uwsgi_temp_path /run/u; scgi_temp_path /run/s; server { listen 80; location / { return 200 'from nginx'; } } }";
    let layer = LayerBuilder::new()
        .host_program(Path::new("/usr/sbin/nginx"))
        .unwrap()
        .folder("run", 0o755)
        .folder("var/lib/nginx", 0o755)
        .folder("var/log/nginx", 0o755)
        .file("etc/nginx.conf", 0o644, config)
        .file("etc/passwd", 0o644, b"root:x:0:0::/:/\nwww:x:33:33::/:/\n")
        .file("etc/group", 0o644, b"root:x:0:\nwww:x:33:\n");
    let words = json!({"Entrypoint": ["/usr/sbin/nginx", "-c", "/etc/nginx.conf"], "StopSignal": "SIGQUIT"});
    let image = ImageBuilder::new().layer(layer).config(words).build();
    let settings = json!({
        "tmpfs": [{"path": "/run"}, {"path": "/var/lib/nginx"}, {"path": "/var/log/nginx"}],
        "capabilities": ["SETUID", "SETGID", "NET_BIND_SERVICE", "CHOWN"],
        "network": {"own": {"address": "10.213.81.2", "prefix": 30, "gateway": "10.213.81.1"}},
        "probe": {"http": {"port": 80}},
    });
    let mut workload = Workload::of(&image).settings(settings);
    workload.start_and_wait();
    wait_for(|| {
        let health = workload.health();
        health.healthy.then_some(())
    });
    let mut stream = TcpStream::connect("10.213.81.2:80").unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("from nginx"), "{answer}");
    workload.says("GET / HTTP/1.0");
    workload.stop(30_000);
    assert_eq!(workload.exit().code, Some(0));
}

#[test]
fn a_layer_is_unpacked_once_for_all() {
    if missing(&[]) {
        return;
    }
    let config = json!({"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["cat /etc/which; exec sleep 1000"]});
    let build = |name: &str| {
        let top = LayerBuilder::new().file("etc/which", 0o644, name.as_bytes());
        ImageBuilder::new()
            .layer(busybox_layer())
            .layer(top)
            .config(config.clone())
            .build()
    };
    let shared = tempfile::tempdir().unwrap();
    let cache = shared.path().join("cache");
    let mut both: Vec<Workload> = ["one\n", "two\n"]
        .map(|name| Workload::of(&build(name)).with(|spec| spec.cache = Some(cache.clone())))
        .into();
    both.iter_mut().for_each(Workload::start);
    for (workload, name) in both.iter_mut().zip(["one", "two"]) {
        workload.state();
        workload.says(name);
    }
    let layers: Vec<_> = fs::read_dir(cache.join("layers")).unwrap().flatten().collect();
    assert_eq!(layers.len(), 3);
    assert_eq!(fs::read_dir(cache.join("drafts")).unwrap().count(), 0);
    let shared_layer = layers
        .iter()
        .find(|layer| layer.path().join("bin/busybox").exists())
        .unwrap();
    assert_eq!(
        fs::metadata(shared_layer.path().join("bin/busybox")).unwrap().uid(),
        1_000_000
    );
    // A prune that keeps nothing removes nothing that is in use.
    let prune = || {
        let done = std::process::Command::new(crate::support::RUNTIME)
            .arg("prune")
            .arg(&cache)
            .output()
            .unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    assert_eq!(prune(), "removed 0, in use 3\n");
    for workload in &mut both {
        workload.stop(1);
        workload.exit();
    }
    assert_eq!(prune(), "removed 3, in use 0\n");
    assert_eq!(fs::read_dir(cache.join("layers")).unwrap().count(), 0);
}

#[test]
fn upper_layers_hide_what_is_below() {
    if missing(&[]) {
        return;
    }
    let base = busybox_layer()
        .folder("d", 0o755)
        .file("d/old", 0o644, b"1")
        .file("gone", 0o644, b"1")
        .folder("e", 0o755);
    let base = base.file("e/a", 0o644, b"1").file("e/b", 0o644, b"1");
    let top = LayerBuilder::new()
        .folder("d", 0o755)
        .file("d/.wh..wh..opq", 0, b"")
        .file("d/new", 0o644, b"2")
        .file(".wh.gone", 0, b"")
        .file("e/.wh.a", 0, b"");
    let config = json!({"Entrypoint": ["/bin/sh", "-c", "ls /d /e; ls /gone 2>&1; true"]});
    let image = ImageBuilder::new().layer(base).layer(top).config(config).build();
    let log = Workload::of(&image).output();
    assert!(
        log.contains(&"new".to_owned()) && log.contains(&"b".to_owned()),
        "{log:?}"
    );
    assert!(
        !log.contains(&"old".to_owned()) && !log.contains(&"a".to_owned()),
        "{log:?}"
    );
    assert!(log.iter().any(|line| line.contains("No such file")), "{log:?}");
}

#[test]
fn what_is_not_acceptable_is_refused_with_the_reason() {
    if missing(&[]) {
        return;
    }
    let config = || json!({"Entrypoint": ["/bin/sh"]});
    let image = |layer: LayerBuilder| ImageBuilder::new().layer(layer).config(config()).build();
    let refused = |mut workload: Workload, expected: &str| {
        let exit = workload.run();
        let detail = exit.detail.unwrap_or_default();
        assert_eq!(exit.reason, ExitReason::Refused, "{detail}");
        assert!(detail.contains(expected), "{detail}");
        let cache = workload.home.path().join("cache");
        for folder in ["layers", "drafts"] {
            let left = fs::read_dir(cache.join(folder)).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{folder} after {expected}");
        }
    };
    refused(
        Workload::of(&image(LayerBuilder::new().file("../../x", 0o644, b"1"))),
        "leads out",
    );
    refused(
        Workload::of(&image(LayerBuilder::new().file("/x/../../y", 0o644, b"1"))),
        "leads out",
    );
    let behind = LayerBuilder::new().symlink("etc", "/tmp").file("etc/cron", 0o644, b"1");
    refused(Workload::of(&image(behind)), "symbolic link");
    let node = LayerBuilder::new().owned("dev/sda", EntryType::Block, 0o666, 0, "", &[]);
    refused(Workload::of(&image(node)), "device node");
    let foreign = LayerBuilder::new().owned("x", EntryType::Regular, 0o644, 70_000, "", b"1");
    refused(Workload::of(&image(foreign)), "owner");
    let plain = busybox_layer().tar();
    let wrong = ImageBuilder::new().packed_layer(
        plain.clone(),
        Digest::of(b"other"),
        "application/vnd.oci.image.layer.v1.tar",
    );
    refused(Workload::of(&wrong.config(config()).build()), "unpacks to");
    let no_gzip =
        ImageBuilder::new().packed_layer(plain, Digest::of(b""), "application/vnd.oci.image.layer.v1.tar+gzip");
    refused(Workload::of(&no_gzip.config(config()).build()), "cannot be read");
    let arm = Platform {
        os: "linux".into(),
        architecture: "mips".into(),
        variant: String::new(),
    };
    refused(
        Workload::of(&ImageBuilder::new().layer(busybox_layer()).platform(arm).build()),
        "linux/mips",
    );
    let corrupt = Workload::of(&image(busybox_layer()));
    let layer = corrupt.spec.parts[1].path.clone();
    let mut bytes = fs::read(&layer).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&layer, bytes).unwrap();
    refused(corrupt, "layer sha256");
    let incomplete = Workload::of(&image(busybox_layer())).with(|spec| spec.parts.truncate(1));
    refused(incomplete, "lack");
    let other = Workload::of(&image(busybox_layer())).with(|spec| spec.digest = Digest::of(b"x").to_string());
    refused(other, "has digest");
}
