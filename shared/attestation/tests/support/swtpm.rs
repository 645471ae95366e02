//! A TPM emulator of its own for one test, driven by tpm2-tools.

#![allow(unreachable_pub, clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const RETRY: [u8; 4] = [0, 0, 0x09, 0x22];
const PASSWORD: [u8; 9] = [0x40, 0, 0, 9, 0, 0, 1, 0, 0];

pub struct Swtpm {
    pub dir: TempDir,
    port: u16,
    process: Child,
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Why there can be no emulator here; nothing when there can.
pub fn missing() -> Option<String> {
    ["swtpm", "swtpm_setup", "tpm2_quote"].into_iter().find_map(|tool| {
        let found = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        found.err().map(|e| format!("{tool} cannot be run: {e}"))
    })
}

/// Two neighbouring ports that are free now: the emulator's control port is the one after.
fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
            return port;
        }
    }
}

impl Swtpm {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir_all(at("ca")).unwrap();
        fs::create_dir_all(at("state")).unwrap();
        let ca = format!(
            "statedir = {0}\nsigningkey = {0}/signkey.pem\nissuercert = {0}/issuercert.pem\ncertserial = {0}/certserial\n",
            at("ca")
        );
        fs::write(at("localca.conf"), ca).unwrap();
        fs::write(at("localca.options"), "--platform-manufacturer Test\n").unwrap();
        let setup = format!(
            "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
            at("localca.conf"),
            at("localca.options")
        );
        fs::write(at("setup.conf"), setup).unwrap();
        let state = format!("dir://{}", at("state"));
        let made = Command::new("swtpm_setup")
            .args([
                "--tpm2",
                "--tpmstate",
                &state,
                "--config",
                &at("setup.conf"),
                "--create-ek-cert",
                "--ecc",
            ])
            .args([
                "--pcr-banks",
                "sha256",
                "--not-overwrite",
                "--write-ek-cert-files",
                &at("state"),
            ])
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "swtpm_setup: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        // Another program may take a port between the search and the start; then there is another search.
        for _ in 0..5 {
            let port = free_ports();
            let mut process = Command::new("swtpm")
                .args(["socket", "--tpm2", "--tpmstate", &format!("dir={}", at("state"))])
                .args([
                    "--server",
                    &format!("type=tcp,port={port},bindaddr=127.0.0.1,disconnect"),
                ])
                .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
                .args(["--flags", "not-need-init,startup-clear"])
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && process.try_wait().unwrap().is_none() {
                if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    return Self { dir, port, process };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("swtpm did not start");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs a tool in the test's folder; says whether it succeeded.
    pub fn try_run(&self, line: &str) -> Result<(), String> {
        let mut words = line.split_whitespace();
        let out = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.dir.path())
            .env("TPM2TOOLS_TCTI", format!("swtpm:host=127.0.0.1,port={}", self.port))
            .output()
            .unwrap();
        if out.status.success() {
            return Ok(());
        }
        Err(format!("{line}: {}", String::from_utf8_lossy(&out.stderr)))
    }

    pub fn run(&self, line: &str) {
        self.try_run(line).unwrap();
    }

    /// Runs a tool and frees what it left in the emulator's three slots.
    pub fn run_and_flush(&self, line: &str) {
        self.run(line);
        self.run("tpm2_flushcontext -t");
    }

    /// `TPMT_PUBLIC` of a persistent key.
    pub fn public(&self, handle: &str) -> Vec<u8> {
        self.run(&format!("tpm2_readpublic -Q -c {handle} -f tss -o public.tss"));
        self.read("public.tss")[2..].to_vec()
    }

    /// An attestation key at 0x81000011 and a device key at 0x81000012.
    pub fn make_keys(&self) {
        let signing = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";
        let scheme = "ecc256:ecdsa-sha256:null";
        for (hierarchy, attributes, handle) in [
            ("e", format!("{signing}|restricted"), "0x81000011"),
            ("o", signing.to_owned(), "0x81000012"),
        ] {
            self.run_and_flush(&format!(
                "tpm2_createprimary -Q -C {hierarchy} -G {scheme} -a {attributes} -c key.ctx"
            ));
            self.run_and_flush(&format!("tpm2_evictcontrol -Q -C o -c key.ctx {handle}"));
        }
    }

    /// TPM2_Certify of the device key by the attestation key, with qualifying data, which tpm2_certify 5.4 does not offer.
    pub fn certify(&self, qualifying: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let body = [
            &0x8100_0012_u32.to_be_bytes()[..],
            &0x8100_0011_u32.to_be_bytes(),
            &18_u32.to_be_bytes(),
            &PASSWORD,
            &PASSWORD,
            &crate::support::sized(qualifying),
            &[0x00, 0x10],
        ]
        .concat();
        let len = u32::try_from(10 + body.len()).unwrap();
        let command = [&[0x80, 0x02][..], &len.to_be_bytes(), &0x148_u32.to_be_bytes(), &body].concat();
        let (mut tpm, mut head) = (None, [0; 10]);
        for _ in 0..10 {
            let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
            socket.write_all(&command).unwrap();
            socket.read_exact(&mut head).unwrap();
            tpm = Some(socket);
            // libtss2 repeats a command that the TPM was not ready for; so must we.
            if head[6..] != RETRY {
                break;
            }
        }
        let mut tpm = tpm.unwrap();
        assert_eq!(head[6..], [0; 4], "TPM2_Certify");
        let mut len = [0; 4];
        tpm.read_exact(&mut len).unwrap();
        let mut parameters = vec![0; u32::from_be_bytes(len) as usize];
        tpm.read_exact(&mut parameters).unwrap();
        let len = usize::from(u16::from_be_bytes([parameters[0], parameters[1]]));
        (parameters[2..2 + len].to_vec(), parameters[2 + len..].to_vec())
    }
}
