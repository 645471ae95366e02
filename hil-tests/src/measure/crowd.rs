//! Many nodes under one gateway: real TLS, real MQTT, real hellos; only what would run on them is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cnova_link::{Address, FloorClock, Identity, Uplink, UplinkConfig, UplinkEvent, client_tls};
use cnova_shared::certificate::SITE_URN;
use cnova_shared::envelope::Untrusted;
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::memory::pss_kib;
use super::table::Table;
use super::{SETTLE, wrong};
use crate::demo::DemoError;
use crate::demo::fleet::Fleet;

const GATEWAY: &str = "line-gw";
const PATIENCE: Duration = Duration::from_secs(180);
/// A node says hello again when nobody answered it for so long.
const AGAIN: Duration = Duration::from_secs(20);

/// Connects `count` nodes and reads the gateway's memory before and after.
pub(super) fn measure(fleet: &Fleet, count: usize, table: &mut Table) -> Result<(), DemoError> {
    let folder = fleet.dir().join("crowd");
    let people = issue(fleet, &folder, count)?;
    let pids = [
        (GATEWAY, fleet.pid(GATEWAY)),
        ("area-gw", fleet.pid("area-gw")),
        ("hub-1", fleet.pid("hub-1")),
    ];
    let before = pids.map(|(_, pid)| pss_kib(pid));
    let address = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], fleet.port(GATEWAY))));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(wrong)?;
    let (took, welcomed, after) = runtime.block_on(async {
        let welcomed = Arc::new(AtomicUsize::new(0));
        let begin = Instant::now();
        let mut tasks = Vec::new();
        for person in people {
            tasks.push(tokio::spawn(live(person, address.clone(), welcomed.clone())));
        }
        while welcomed.load(Ordering::Relaxed) < count && begin.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = begin.elapsed();
        tokio::time::sleep(SETTLE).await;
        let after = pids.map(|(_, pid)| pss_kib(pid));
        tasks.iter().for_each(|t| t.abort());
        (took, welcomed.load(Ordering::Relaxed), after)
    });
    let how = "TLS 1.3 with a certificate each, MQTT, a signed hello and its answer; all clients are one process here";
    let value = format!("{welcomed} of {count} in {:.1} s", took.as_secs_f64());
    table.add("nodes connected to one gateway and welcomed", value, how);
    for (((name, _), before), after) in pids.into_iter().zip(before).zip(after) {
        let per_node = after.saturating_sub(before) as f64 / welcomed.max(1) as f64;
        let mib = |kib: u64| kib as f64 / 1024.0;
        let value = format!(
            "{:.1} -> {:.1} MiB, {per_node:.1} KiB for each node",
            mib(before),
            mib(after)
        );
        let what = if name == GATEWAY {
            "the gateway they connect to"
        } else {
            "above it"
        };
        table.add(
            &format!("PSS of {name}, {count} more nodes"),
            value,
            &format!("{what}; 10 s after the last was welcomed"),
        );
    }
    Ok(())
}

/// Certificates as `cnova trust issue` makes them, with the demo's own authority.
fn issue(fleet: &Fleet, folder: &Path, count: usize) -> Result<Vec<Person>, DemoError> {
    let trust = fleet.dir().join("trust");
    let read = |name: &str| fs::read(trust.join(name)).map_err(wrong);
    let ca = CertificateDer::from_pem_slice(&read("ca.pem")?).map_err(wrong)?;
    let ca_key = KeyPair::from_pem(&String::from_utf8_lossy(&read("ca.key")?)).map_err(wrong)?;
    let issuer = Issuer::from_ca_cert_der(&ca, ca_key).map_err(wrong)?;
    fs::create_dir_all(folder).map_err(wrong)?;
    let bundle = fleet.identity("plc-1").join("trust-bundle.cose");
    let mut people = Vec::with_capacity(count);
    for n in 0..count {
        let name = format!("crowd-{n:05}");
        let site = format!("plant-7/line-2/{name}");
        let (pem, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        write_certificate(&name, &site, &issuer, &pem, &key)?;
        people.push(Person {
            identity: Identity::load(&pem, &key, &bundle).map_err(wrong)?,
            site,
        });
    }
    Ok(people)
}

fn write_certificate(
    name: &str,
    site: &str,
    issuer: &Issuer<'_, KeyPair>,
    pem: &Path,
    key: &Path,
) -> Result<(), DemoError> {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![
        SanType::DnsName(name.try_into().map_err(wrong)?),
        SanType::URI(format!("{SITE_URN}{site}").as_str().try_into().map_err(wrong)?),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2027, 1, 1);
    let certificate = params.signed_by(&pair, issuer).map_err(wrong)?;
    fs::write(pem, certificate.pem()).map_err(wrong)?;
    fs::write(key, pair.serialize_pem()).map_err(wrong)?;
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).map_err(wrong)
}

/// One node of the crowd.
struct Person {
    identity: Identity,
    site: String,
}

/// Connects and says hello until it is answered; then it only listens.
async fn live(person: Person, address: Address, welcomed: Arc<AtomicUsize>) -> Result<(), DemoError> {
    let parent = NodeId::new(GATEWAY).map_err(wrong)?;
    let node = person.identity.node().clone();
    let tls = client_tls(&person.identity, &parent, Arc::new(FloorClock::new(0))).map_err(wrong)?;
    let (link, mut events) = Uplink::start(UplinkConfig::new(address, node, parent.clone(), tls));
    let hello = hello(&person)?;
    let mut answered = false;
    loop {
        let next = tokio::time::timeout(if answered { PATIENCE * 10 } else { AGAIN }, events.recv()).await;
        let say = match next {
            Ok(None) => return Err(wrong("the link ended")),
            Ok(Some(UplinkEvent::Connected)) => true,
            Ok(Some(UplinkEvent::Message { kind: Kind::Ack, bytes })) => {
                if !answered && Untrusted::read(&bytes).is_ok() {
                    answered = true;
                    welcomed.fetch_add(1, Ordering::Relaxed);
                }
                false
            }
            Ok(Some(_)) => false,
            Err(_) => !answered && link.is_connected(),
        };
        if say {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_secs());
            let bytes = person
                .identity
                .seal(Kind::Hello, &parent, now, None, &hello, true)
                .map_err(wrong)?;
            let _ = link.send(Kind::Hello, bytes);
        }
    }
}

fn hello(person: &Person) -> Result<v1::Hello, DemoError> {
    Ok(v1::Hello {
        v: v1::VERSION,
        boot: format!("boot-{}", person.identity.node()),
        epoch: 0,
        generation: 0,
        digest: None,
        incarnation: 1,
        role: v1::NodeRole::Agent,
        site: SitePath::new(&person.site).map_err(wrong)?,
        labels: std::collections::BTreeMap::new(),
        capabilities: v1::Capabilities {
            runtimes: Vec::new(),
            memory_bytes: 64 << 20,
            cpu_millis: 500,
            ..Default::default()
        },
        software: "measure".into(),
        trust_version: person.identity.trust().contents().version,
        documents: Default::default(),
        renew: false,
        box_key: None,
        alarms: Vec::new(),
    })
}
