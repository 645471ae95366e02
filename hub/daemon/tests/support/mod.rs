//! A tree in one test: an authority, root and hub keys, and the real program in a folder of its own.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cnova_provenance::AOT_BUILDER;
use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle, TrustedBuilder};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::{Signer, SoftKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The most that anything here waits.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const ADMIN: &str = "admin-token-0123456789";
pub const OPERATOR: &str = "operator-token-0123456789";
pub const VIEWER: &str = "viewer-token-0123456789";
pub const ENGINE: &str = "cnova-1-wasmtime-48.0.8";
pub const CI: &str = "https://ci.example/line-2";
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn builder(key: &SoftKey, builder: &str, level: u8) -> TrustedBuilder {
    TrustedBuilder {
        key: key.public_key().clone(),
        builder: builder.to_owned(),
        level,
        not_after: u64::from(u32::MAX),
    }
}

/// An envelope of provenance of these bytes; seed 21 is the key of [`CI`].
pub fn provenance(seed: u8, subject: &[u8]) -> Vec<u8> {
    let statement = cnova_provenance::make(&cnova_provenance::Made {
        subjects: &[cnova_provenance::Subject {
            name: "app".into(),
            digest: Digest::of(subject),
        }],
        build_type: "urn:x",
        parameters: Value::Null,
        dependencies: &[],
        builder: CI,
        builder_version: std::collections::BTreeMap::new(),
        started_s: 0,
        finished_s: 0,
    });
    cnova_provenance::sign(&statement, &[&SoftKey::ed25519_from_seed(&[seed; 32])]).unwrap()
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

/// The keys at the root of one tree.
pub struct Plant {
    issuer: Issuer<'static, KeyPair>,
    authority: Vec<u8>,
    root: SoftKey,
    pub signing_key: KeyPair,
}

impl Plant {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Plant 7");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().der().to_vec();
        let signing_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let root = SoftKey::ed25519_from_seed(&[1; 32]);
        Self {
            issuer: Issuer::new(params, key),
            authority,
            root,
            signing_key,
        }
    }

    pub fn bundle(&self, roles: Vec<Role>, not_after: u64) -> Vec<u8> {
        let key = SoftKey::from_pkcs8(&self.signing_key.serialize_der()).unwrap();
        let contents = Bundle {
            v: 1,
            version: 1,
            issued_at: now_s() - 60,
            roots: vec![self.root.public_key().clone()],
            threshold: 1,
            keys: vec![SigningKey {
                key: key.public_key().clone(),
                roles,
                not_after,
            }],
            authorities: vec![self.authority.clone().into()],
            builders: vec![
                builder(&key, AOT_BUILDER, 3),
                builder(&SoftKey::ed25519_from_seed(&[21; 32]), CI, 2),
            ],
            attestation: None,
        };
        bundle::sign(&contents, &[&self.root]).unwrap()
    }

    pub fn trust(&self) -> TrustBundle {
        TrustBundle::flashed(&self.bundle(vec![Role::Twin], now_s() + 86_400)).unwrap()
    }

    /// Writes `<name>.pem`, `<name>.key` and `trust.cose`.
    pub fn issue(&self, folder: &Path, name: &str, site: &str) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let urn = format!("urn:cnova:site:{site}");
        params
            .subject_alt_names
            .push(SanType::URI(urn.as_str().try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        std::fs::write(
            folder.join("trust.cose"),
            self.bundle(vec![Role::Twin], now_s() + 86_400),
        )
        .unwrap();
    }
}

/// A folder with everything that a hub is installed with.
pub struct Site {
    pub plant: Plant,
    pub folder: TempDir,
    pub api: SocketAddr,
    pub mqtt: SocketAddr,
}

impl Site {
    /// With a worker that "compiles" by copying.
    pub fn new() -> Self {
        let (plant, folder) = (Plant::new(), tempfile::tempdir().unwrap());
        plant.issue(folder.path(), "hub", "hq");
        let site = Self {
            plant,
            folder,
            api: free_port(),
            mqtt: free_port(),
        };
        std::fs::write(site.path("signing.key"), site.plant.signing_key.serialize_pem()).unwrap();
        let mut tokens = String::new();
        for (name, token) in [("admin", ADMIN), ("operator", OPERATOR), ("viewer", VIEWER)] {
            let hash = Digest::of(token.as_bytes()).hex();
            tokens += &format!("[[token]]\nname = \"{name}\"\nrole = \"{name}\"\nsha256 = \"{hash}\"\n");
        }
        std::fs::write(site.path("tokens.toml"), tokens).unwrap();
        let worker = site.path("worker");
        let answer =
            format!(r#"{{"ok":true,"size":1,"kind":"module","imports":[],"engine":"{ENGINE}","target":"'"$1"'"}}"#);
        std::fs::write(
            &worker,
            format!("#!/bin/sh\n/bin/cp \"$5\" \"$6\" && printf '%s\\n' '{answer}'\n"),
        )
        .unwrap();
        std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o755)).unwrap();
        site.configure(&worker, "");
        site
    }

    pub fn configure(&self, worker: &Path, more: &str) {
        let Self { api, mqtt, .. } = self;
        let state = self.state();
        let text = format!(
            "state_dir = {state:?}\ntokens = \"tokens.toml\"\naot_worker = {worker:?}\n{more}\n[api]\nlisten = \"{api}\"\n\
             [mqtt]\nlisten = \"{mqtt}\"\n[identity]\ncertificate = \"hub.pem\"\nkey = \"hub.key\"\n\
             trust_bundle = \"trust.cose\"\n[signing]\nkey = \"signing.key\"\n"
        );
        std::fs::write(self.path("hub.toml"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cnova-hub"));
        command
            .arg(arguments[0])
            .arg("--config")
            .arg(self.path("hub.toml"))
            .args(&arguments[1..]);
        command
    }

    /// Runs it to its end, which must come by itself.
    pub fn fails(&self, arguments: &[&str]) -> (Output, String) {
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("it runs: {:?}", child.wait_with_output());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        (output, said)
    }

    pub fn start(&self) -> Hub<'_> {
        self.start_with(&["run"])
    }

    pub fn start_with(&self, arguments: &[&str]) -> Hub<'_> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let process = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut hub = Hub {
            site: self,
            process: Some(process),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok((200, _)) = hub.try_get("/healthz", "") {
                return hub;
            }
            let ended = hub.process.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

/// The program, running. It is killed when this is dropped.
pub struct Hub<'s> {
    pub site: &'s Site,
    process: Option<Child>,
}

impl Hub<'_> {
    pub fn client(&self) -> Client {
        Client { api: self.site.api }
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// SIGTERM, and its exit status.
    pub fn stop(mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let pid = process.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                process.kill().unwrap();
                panic!("it does not stop: {}", self.site.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn try_get(&self, path: &str, token: &str) -> Result<(u16, Value), ureq::Error> {
        self.client().try_get(path, token)
    }
}

impl Drop for Hub<'_> {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- the hub's log\n{}", self.site.log());
        }
    }
}

/// Speaks to the API.
#[derive(Clone, Copy)]
pub struct Client {
    pub api: SocketAddr,
}

impl Client {
    fn agent() -> ureq::Agent {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE));
        ureq::Agent::new_with_config(config.build())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    fn try_get(&self, path: &str, token: &str) -> Result<(u16, Value), ureq::Error> {
        let (status, body) = self.try_get_bytes(path, token, "application/json")?;
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    fn try_get_bytes(&self, path: &str, token: &str, accept: &str) -> Result<(u16, Vec<u8>), ureq::Error> {
        let request = Self::agent().get(self.url(path)).header("accept", accept);
        let request = if token.is_empty() {
            request
        } else {
            request.header("authorization", format!("Bearer {token}"))
        };
        let mut response = request.call()?;
        Ok((response.status().as_u16(), response.body_mut().read_to_vec()?))
    }

    pub fn get(&self, path: &str, token: &str) -> (u16, Value) {
        self.try_get(path, token).unwrap()
    }

    pub fn get_bytes(&self, path: &str, accept: &str) -> (u16, Vec<u8>) {
        self.try_get_bytes(path, VIEWER, accept).unwrap()
    }

    pub fn head(&self, path: &str) -> u16 {
        let request = Self::agent()
            .head(self.url(path))
            .header("authorization", format!("Bearer {VIEWER}"));
        request.call().unwrap().status().as_u16()
    }

    pub fn delete(&self, path: &str, token: &str) -> (u16, Value) {
        let request = Self::agent()
            .delete(self.url(path))
            .header("authorization", format!("Bearer {token}"));
        let mut response = request.call().unwrap();
        (
            response.status().as_u16(),
            response.body_mut().read_json().unwrap_or(Value::Null),
        )
    }

    pub fn post(&self, path: &str, token: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Value) {
        let mut request = Self::agent()
            .post(self.url(path))
            .header("authorization", format!("Bearer {token}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).unwrap();
        (
            response.status().as_u16(),
            response.body_mut().read_json().unwrap_or(Value::Null),
        )
    }

    pub fn put(&self, path: &str, token: &str, body: &[u8]) -> (u16, Value) {
        let request = Self::agent()
            .put(self.url(path))
            .header("authorization", format!("Bearer {token}"));
        let mut response = request.send(body).unwrap();
        (
            response.status().as_u16(),
            response.body_mut().read_json().unwrap_or(Value::Null),
        )
    }

    pub fn upload(&self, bytes: &[u8]) -> String {
        let (status, body) = self.post("/v1/artifacts", OPERATOR, &[], bytes);
        assert!(status == 201 || status == 200, "{status} {body}");
        body["digest"].as_str().unwrap().to_owned()
    }

    pub fn apply(&self, token: &str, manifest: &str, more: Value) -> (u16, Value) {
        let mut body = json!({"manifest": manifest, "source": "app.yaml"});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.post(
            "/v1/applications",
            token,
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
    }
}

/// One workload on every node.
pub fn manifest(name: &str, artifact: &str) -> String {
    format!(
        "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: {name}}}\nworkloads:\n  - name: one\n    runtime: wasm\n    \
         artifact: {{{artifact}}}\n    resources: {{memory: 16MiB, cpu: 100m}}\n    placement: {{replicas: each}}\n"
    )
}

pub fn by_digest(name: &str, digest: &str) -> String {
    manifest(name, &format!("digest: \"{digest}\""))
}
