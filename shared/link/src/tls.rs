//! TLS 1.3 to the parent, both sides with certificates, on a clock that cannot be earlier than what was proven.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;

use crate::identity::Identity;

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// An authority in the trust bundle cannot be used.
    #[error("an authority in the trust bundle cannot be used: {0}")]
    Authority(String),
    /// The parent's node id is not a DNS name, so no certificate can carry it.
    #[error("the parent's node id {0} is not a DNS name, so that no certificate can carry it")]
    ParentName(NodeId),
    /// The node's own certificate or key cannot be used.
    #[error("the node's certificate or key cannot be used for TLS: {0}")]
    Own(#[source] Error),
}

/// The system's clock, but never before the newest time that was verified: a machine without a battery starts in 1970,
/// and every certificate would be "not yet valid".
#[derive(Debug)]
pub struct FloorClock {
    floor_s: AtomicU64,
}

impl FloorClock {
    /// A clock that never says less than `floor_s`.
    #[must_use]
    pub fn new(floor_s: u64) -> Self {
        Self {
            floor_s: AtomicU64::new(floor_s),
        }
    }

    /// A clock that begins where the node's own certificate or its trust bundle does, whichever is later: it cannot be
    /// earlier than that.
    #[must_use]
    pub fn of(identity: &Identity) -> Self {
        Self::new(identity.not_before_s().max(identity.trust().contents().issued_at))
    }

    /// A later time was verified.
    pub fn raise(&self, floor_s: u64) {
        self.floor_s.fetch_max(floor_s, Ordering::Relaxed);
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn now_s(&self) -> u64 {
        UnixTime::now().as_secs().max(self.floor_s.load(Ordering::Relaxed))
    }
}

impl TimeProvider for FloorClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now_s())))
    }
}

/// How `identity` connects to `parent`, whose certificate must carry its node id as a DNS name, whatever address is
/// dialled.
///
/// # Errors
/// [`TlsError`] when the certificates or the parent's name cannot be used.
pub fn client_tls(identity: &Identity, parent: &NodeId, clock: Arc<FloorClock>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = parent_verifier(identity.tls_authorities(), parent, provider.clone())?;
    let mut config = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Own)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(identity.certified());
    // Parents give no tickets, and a resumed session would outlive the certificate it began with.
    config.resumption = Resumption::disabled();
    // The address that is dialled says nothing about who answers; the node id does.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// How somebody without a certificate connects to `server`, and the name that its certificate must carry.
pub(crate) fn newcomer_tls(
    trust: &TrustBundle,
    server: &NodeId,
    clock: Arc<FloorClock>,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let authorities = trust.authorities().into_iter().map(CertificateDer::from).collect();
    let verifier = parent_verifier(authorities, server, provider.clone())?;
    let name = verifier.name.clone();
    let mut config = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Own)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok((Arc::new(config), name))
}

fn parent_verifier(
    authorities: Vec<CertificateDer<'static>>,
    parent: &NodeId,
    provider: Arc<CryptoProvider>,
) -> Result<NamedServer, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|e| TlsError::Authority(e.to_string()))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| TlsError::Authority(e.to_string()))?;
    let name = ServerName::try_from(parent.as_str().to_owned()).map_err(|_| TlsError::ParentName(parent.clone()))?;
    Ok(NamedServer { verifier, name })
}

/// rumqttc would check the certificate against the host that it dials, which is often an IP address.
#[derive(Debug)]
struct NamedServer {
    verifier: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier
            .verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
