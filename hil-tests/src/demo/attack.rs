//! A line gateway that lies: it holds the real gateway's key and sends its child what it likes.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cnova_broker::{Endpoint, EndpointConfig, EndpointEvent, Limits, TlsMaterial};
use cnova_link::Identity;
use cnova_shared::envelope::{Claims, Untrusted, seal};
use cnova_shared::ids::NodeId;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;

use super::DemoError;

/// One forged twin.
pub(super) struct Forgery {
    /// What was done to it.
    pub(super) what: &'static str,
    /// The bytes that are sent.
    pub(super) bytes: Vec<u8>,
}

fn wrong(e: impl std::fmt::Display) -> DemoError {
    DemoError::Wrong(e.to_string())
}

/// The four forgeries: a changed byte, another node's twin, an old one, and one signed with a stranger's key.
pub(super) fn forge(own: &[u8], other: &[u8], old: &[u8]) -> Result<Vec<Forgery>, DemoError> {
    let mut changed = own.to_vec();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let claims = Untrusted::read(own).map_err(wrong)?.claims;
    let twin = v1::Twin {
        v: 1,
        node: claims.aud.clone(),
        epoch: u64::from(u32::MAX),
        generation: 1,
        workloads: vec![],
        secrets: vec![],
        system: None,
    };
    let stranger = SoftKey::ed25519_from_seed(&[42; 32]);
    let claims = Claims {
        iss: claims.iss,
        aud: claims.aud,
        iat: claims.iat,
        exp: None,
    };
    let foreign = seal(Kind::Twin, &claims, &twin, &[], &stranger).map_err(wrong)?;
    Ok(vec![
        Forgery {
            what: "its twin with one bit of one byte changed",
            bytes: changed,
        },
        Forgery {
            what: "the twin of plc-2",
            bytes: other.to_vec(),
        },
        Forgery {
            what: "its own twin of the generation before",
            bytes: old.to_vec(),
        },
        Forgery {
            what: "a newer twin signed with a key outside the trust bundle",
            bytes: foreign,
        },
    ])
}

/// Takes the gateway's place on its port, welcomes `victim`, sends the forgeries, and returns the refusals that the
/// victim reported: code and detail. It acknowledges nothing, so that the victim tells the real gateway again.
pub(super) fn lie(
    identity: &Path,
    port: u16,
    victim: &str,
    forgeries: &[Forgery],
) -> Result<Vec<(String, String)>, DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(wrong)?;
    runtime.block_on(async {
        let talk = talk(identity, port, victim, forgeries);
        tokio::time::timeout(Duration::from_secs(40), talk).await.map_err(|_| {
            DemoError::Wrong(format!(
                "{victim} did not report all refusals to the lying gateway in 40 s"
            ))
        })?
    })
}

async fn talk(
    identity: &Path,
    port: u16,
    victim: &str,
    forgeries: &[Forgery],
) -> Result<Vec<(String, String)>, DemoError> {
    let me = Identity::load(
        &identity.join("node.pem"),
        &identity.join("node.key"),
        &identity.join("trust-bundle.cose"),
    )
    .map_err(wrong)?;
    let victim = NodeId::new(victim).map_err(wrong)?;
    let (endpoint, mut events) = open(&me, port).await?;
    let publisher = endpoint.publisher();
    let mut key: Option<cnova_shared::keys::PublicKey> = None;
    let mut refusals: Vec<(String, String)> = Vec::new();
    while refusals.len() < forgeries.len() {
        let Some(event) = events.recv().await else {
            return Err(wrong("the lying gateway's endpoint ended"));
        };
        let EndpointEvent::Message { node, kind, payload } = event else {
            continue;
        };
        if node != victim.as_str() {
            continue;
        }
        match (Kind::parse(&kind), &key) {
            (Some(Kind::Hello), _) => {
                let untrusted = Untrusted::read(&payload).map_err(wrong)?;
                let leaf = untrusted
                    .x5chain
                    .first()
                    .ok_or_else(|| wrong("a hello without a certificate"))?;
                let certificate = cnova_shared::certificate::read(leaf).map_err(wrong)?;
                let hello = untrusted.verify(Kind::Hello, &certificate.key).map_err(wrong)?;
                let hello = hello.decode::<v1::Hello>().map_err(wrong)?.into_value();
                key = Some(certificate.key);
                let ack = v1::Ack {
                    v: 1,
                    stream: v1::Stream::Report,
                    incarnation: 0,
                    seq: 0,
                    hello: Some(hello.boot),
                    away_s: 0,
                };
                let bytes = me.seal(Kind::Ack, &victim, now_s(), None, &ack, true).map_err(wrong)?;
                publisher
                    .publish(victim.as_str(), "ack", Bytes::from(bytes))
                    .map_err(wrong)?;
                for forgery in forgeries {
                    publisher
                        .publish(victim.as_str(), "twin", Bytes::from(forgery.bytes.clone()))
                        .map_err(wrong)?;
                }
            }
            (Some(Kind::Report), Some(key)) => {
                let report = Untrusted::read(&payload)
                    .map_err(wrong)?
                    .verify(Kind::Report, key)
                    .map_err(wrong)?;
                for entry in report.decode::<v1::Report>().map_err(wrong)?.into_value().entries {
                    if let v1::Body::Refused { code, detail, .. } = entry.body
                        && !refusals.contains(&(code.clone(), detail.clone()))
                    {
                        refusals.push((code, detail));
                    }
                }
            }
            _ => {}
        }
    }
    endpoint.shutdown().await;
    Ok(refusals)
}

async fn open(me: &Identity, port: u16) -> Result<(Endpoint, tokio::sync::mpsc::Receiver<EndpointEvent>), DemoError> {
    let tls = TlsMaterial {
        own: me.certified(),
        client_ca: me.tls_authorities(),
    };
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    Endpoint::start(EndpointConfig {
        listen,
        tls,
        limits: Limits::default(),
    })
    .await
    .map_err(wrong)
}

fn now_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

/// That the stranger's key is really outside the bundle; the demo says so and so it is checked.
pub(super) fn stranger_is_unknown(me: &Identity) -> bool {
    let stranger = SoftKey::ed25519_from_seed(&[42; 32]);
    me.trust()
        .key_at_any_time(stranger.public_key().id(), cnova_shared::bundle::Role::Twin)
        .is_none()
}
