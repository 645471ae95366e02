//! TLS 1.3 to the parent, both sides with certificates, on a clock that cannot be earlier than what was proven.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
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

/// The authorities whose certificates a parent may show; they can be replaced while a connection stands.
#[derive(Debug)]
pub struct Authorities(RwLock<Arc<WebPkiServerVerifier>>);

impl Authorities {
    /// These (DER).
    ///
    /// # Errors
    /// [`TlsError::Authority`] when one cannot be used.
    pub fn of(authorities: &[Vec<u8>]) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(server_verifier(authorities)?)))
    }

    /// These from now on, for the connections to come.
    ///
    /// # Errors
    /// [`TlsError::Authority`]; the old ones then stay.
    pub fn replace(&self, authorities: &[Vec<u8>]) -> Result<(), TlsError> {
        let verifier = server_verifier(authorities)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = verifier;
        Ok(())
    }

    fn now(&self) -> Arc<WebPkiServerVerifier> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn server_verifier(authorities: &[Vec<u8>]) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        let authority = CertificateDer::from(authority.clone());
        roots.add(authority).map_err(|e| TlsError::Authority(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| TlsError::Authority(e.to_string()))
}

/// How `identity` connects to `parent`, whose certificate must carry its node id as a DNS name, whatever address is
/// dialled. It believes the authorities of the bundle that it was flashed with.
///
/// # Errors
/// [`TlsError`] when the certificates or the parent's name cannot be used.
pub fn client_tls(identity: &Identity, parent: &NodeId, clock: Arc<FloorClock>) -> Result<Arc<ClientConfig>, TlsError> {
    let authorities = Arc::new(Authorities::of(&identity.trust().authorities())?);
    client_tls_with(identity, parent, clock, authorities)
}

/// The same with authorities that the caller may replace.
///
/// # Errors
/// [`TlsError`] when the certificates or the parent's name cannot be used.
pub fn client_tls_with(
    identity: &Identity,
    parent: &NodeId,
    clock: Arc<FloorClock>,
    authorities: Arc<Authorities>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = NamedServer::new(authorities, parent)?;
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
    let authorities = Arc::new(Authorities::of(&trust.authorities())?);
    let verifier = NamedServer::new(authorities, server)?;
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

/// rumqttc would check the certificate against the host that it dials, which is often an IP address.
#[derive(Debug)]
struct NamedServer {
    authorities: Arc<Authorities>,
    name: ServerName<'static>,
}

impl NamedServer {
    fn new(authorities: Arc<Authorities>, server: &NodeId) -> Result<Self, TlsError> {
        let name =
            ServerName::try_from(server.as_str().to_owned()).map_err(|_| TlsError::ParentName(server.clone()))?;
        Ok(Self { authorities, name })
    }
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
        self.authorities
            .now()
            .verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.now().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.now().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.now().supported_verify_schemes()
    }
}
