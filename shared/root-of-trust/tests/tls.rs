//! TLS 1.3 with keys that their holder does not give out.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::sync::Arc;

use cnova_root_of_trust::testing::Swtpm;
use cnova_root_of_trust::tpm::EkKind;
use cnova_root_of_trust::{RootOfTrust, Soft, Tpm, tls_signing_key};
use cnova_shared::keys::{Algorithm, PublicKey, Signer, SoftKey};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, SignatureScheme};

struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Self { certificate, issuer }
    }

    fn certified(&self, name: &str, signer: Arc<dyn Signer>) -> Arc<CertifiedKey> {
        let signer_key = signer.public_key().clone();
        let key = tls_signing_key(signer);
        let public = Public(signer_key);
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&public, &self.issuer).unwrap();
        let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
        certified.keys_match().unwrap();
        Arc::new(certified)
    }
}

struct Public(PublicKey);

impl PublicKeyData for Public {
    fn der_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.0.algorithm {
            Algorithm::Ed25519 => &rcgen::PKCS_ED25519,
            Algorithm::Es256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        }
    }
}

/// A handshake in memory, both sides with certificates; returns what each heard.
fn handshake(server: Arc<CertifiedKey>, client: Arc<CertifiedKey>, authority: &Authority) -> (String, String) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).unwrap();
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let server_config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(server)));
    let client_config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(client)));
    let name = ServerName::try_from("server.test").unwrap();
    let mut client = ClientConnection::new(Arc::new(client_config), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server_config)).unwrap();
    client.writer().write_all(b"from the client").unwrap();
    server.writer().write_all(b"from the server").unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(server.peer_certificates().unwrap().len(), 1);
    let heard = |reader: &mut dyn Read| {
        let mut buffer = [0; 64];
        let length = reader.read(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    (heard(&mut server.reader()), heard(&mut client.reader()))
}

const HEARD: (&str, &str) = ("from the client", "from the server");

fn assert_talks(one: &Arc<dyn Signer>, other: &Arc<dyn Signer>) {
    let authority = Authority::new();
    let (server, client) = (
        authority.certified("server.test", Arc::clone(one)),
        authority.certified("client.test", Arc::clone(other)),
    );
    let (at_server, at_client) = handshake(server, client, &authority);
    assert_eq!((at_server.as_str(), at_client.as_str()), HEARD);
}

#[test]
fn both_sides_of_tls_13_work_with_a_tpm() {
    let Some(swtpm) = Swtpm::start(EkKind::P384) else {
        return;
    };
    let tpm = Tpm::open(swtpm.config()).unwrap().device_key();
    // Often enough to meet scalars with leading zeros and with the highest bit set.
    for _ in 0..40 {
        assert_talks(&tpm, &tpm);
    }
}

#[test]
fn both_sides_of_tls_13_work_with_files() {
    let folder = tempfile::tempdir().unwrap();
    let p256 = Soft::open_or_create(&folder.path().join("key.pem"))
        .unwrap()
        .device_key();
    let ed25519: Arc<dyn Signer> = Arc::new(SoftKey::ed25519_from_seed(&[5; 32]));
    assert_talks(&p256, &ed25519);
    assert_talks(&ed25519, &p256);
}

#[test]
fn only_the_keys_own_scheme_is_chosen() {
    let key = tls_signing_key(Arc::new(SoftKey::ed25519_from_seed(&[5; 32])));
    let others = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];
    assert!(key.choose_scheme(&others).is_none());
    let chosen = key.choose_scheme(&[others[0], SignatureScheme::ED25519]).unwrap();
    assert_eq!(chosen.scheme(), SignatureScheme::ED25519);
}
