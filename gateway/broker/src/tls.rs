//! TLS 1.3 with mutual certificates, and the identity that a certificate proves.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::config::{ClientTlsMaterial, TlsMaterial};
use crate::error::EndpointError;
use crate::topics;

/// Judges clients by authorities that can be replaced while connections stand.
#[derive(Debug)]
pub(crate) struct Clients(RwLock<Arc<dyn ClientCertVerifier>>);

impl Clients {
    /// Clients of these authorities.
    pub(crate) fn of(authorities: &[CertificateDer<'static>]) -> Result<Self, EndpointError> {
        Ok(Self(RwLock::new(client_verifier(authorities)?)))
    }

    /// Clients of these authorities from now on; the old ones stay when the new ones cannot be used.
    pub(crate) fn replace(&self, authorities: &[CertificateDer<'static>]) -> Result<(), EndpointError> {
        let verifier = client_verifier(authorities)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = verifier;
        Ok(())
    }

    fn now(&self) -> Arc<dyn ClientCertVerifier> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientCertVerifier for Clients {
    // A hint would have to outlive the authorities that it is made of; clients here have one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.now().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().supported_verify_schemes()
    }
}

fn client_verifier(authorities: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, EndpointError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider())
        .build()
        .map_err(|error| EndpointError::Authority {
            reason: error.to_string(),
        })
}

/// The server side: every client must show a certificate of one of our authorities.
pub(crate) fn server_config(material: TlsMaterial, clients: Arc<Clients>) -> Result<ServerConfig, EndpointError> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| EndpointError::Tls { source })?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(material.own);
    // A resumed session would carry on an identity whose certificate has expired since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The client side, for an external broker, and the judge of that broker.
pub(crate) fn client_config(material: ClientTlsMaterial) -> Result<(ClientConfig, Arc<NamedServer>), EndpointError> {
    let name = ServerName::try_from(material.server_name.clone()).map_err(|_| EndpointError::Invalid {
        what: "the server name",
        value: material.server_name,
    })?;
    let verifier = RwLock::new(server_verifier(&material.ca)?);
    let server = Arc::new(NamedServer { verifier, name });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| EndpointError::Tls { source })?
        .dangerous()
        .with_custom_certificate_verifier(server.clone())
        .with_client_cert_resolver(material.own);
    Ok((config, server))
}

/// A certificate (then its intermediates) and its key that stay the same.
///
/// # Errors
/// [`EndpointError::Tls`] when the key cannot be used or is not that of the certificate.
pub fn fixed(
    cert_chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<SingleCertAndKey>, EndpointError> {
    let certified = CertifiedKey::from_der(cert_chain, key, &provider());
    let certified = certified.map_err(|source| EndpointError::Tls { source })?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

fn server_verifier(authorities: &[CertificateDer<'static>]) -> Result<Arc<WebPkiServerVerifier>, EndpointError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider())
        .build()
        .map_err(|error| EndpointError::Authority {
            reason: error.to_string(),
        })
}

/// The node id in a certificate: its one subject CN, if that is a node id.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("its certificate cannot be read: {error}"))?;
    let mut names = parsed.subject().iter_common_name();
    let name = match (names.next(), names.next()) {
        (Some(name), None) => name
            .as_str()
            .map_err(|error| format!("the CN of its certificate is not text: {error}"))?,
        _ => return Err("its certificate must have exactly one subject CN".to_owned()),
    };
    if !topics::is_node_id(name) {
        return Err(format!(
            "the CN `{}` of its certificate is not a node id",
            name.escape_debug()
        ));
    }
    Ok(name.to_owned())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, EndpointError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| EndpointError::Authority {
            reason: error.to_string(),
        })?;
    }
    if roots.is_empty() {
        return Err(EndpointError::Authority {
            reason: "the list is empty".to_owned(),
        });
    }
    Ok(roots)
}

/// Checks the broker's certificate against the configured name. rumqttc would check it against the host that it
/// dials, which is often an address.
#[derive(Debug)]
pub(crate) struct NamedServer {
    verifier: RwLock<Arc<WebPkiServerVerifier>>,
    name: ServerName<'static>,
}

impl NamedServer {
    /// Believes these authorities from now on; the old ones stay when the new ones cannot be used.
    pub(crate) fn replace(&self, authorities: &[CertificateDer<'static>]) -> Result<(), EndpointError> {
        let verifier = server_verifier(authorities)?;
        *self.verifier.write().unwrap_or_else(PoisonError::into_inner) = verifier;
        Ok(())
    }

    fn now(&self) -> Arc<WebPkiServerVerifier> {
        self.verifier.read().unwrap_or_else(PoisonError::into_inner).clone()
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
        self.now()
            .verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().supported_verify_schemes()
    }
}
