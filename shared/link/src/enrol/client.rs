//! The newcomer's side.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cnova_attestation::Credential;
use cnova_root_of_trust::RootOfTrust;
use cnova_shared::bundle::TrustBundle;
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::PublicKey;
use cnova_shared::limits;
use cnova_shared::renewal::{self, IssuedError};
use cnova_shared::wire;
use cnova_shared::wire::v1::{
    EnrolAnswer, EnrolBegin, EnrolChallenge, EnrolFinish, EnrolIssued, EnrolRefused, EnrolStep,
};
use serde_bytes::ByteBuf;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::frame::{self, FrameError};
use crate::address::Address;
use crate::tls::{FloorClock, TlsError, newcomer_tls};

/// Time for TCP and TLS.
const CONNECT: Duration = Duration::from_secs(15);
/// Time for an answer: a gateway waits for its hub meanwhile.
const ANSWER: Duration = Duration::from_secs(40);
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause between two attempts when the way is down.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Pause after a refusal that only a person can undo. The token file is read anew then.
const PAUSE_REFUSED: Duration = Duration::from_secs(300);
/// A person who mends something is not to wait longer than this at first.
const PAUSE_REFUSED_FIRST: Duration = Duration::from_secs(10);

/// Why an attempt did not lead to a certificate.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// The token file cannot be read.
    #[error(
        "cannot read the enrolment token {path}: {source}; put the token there, or take token_file out of [enrolment]"
    )]
    Token {
        /// Where.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// What is in the token file is no token.
    #[error("{path} holds no enrolment token: it is empty or longer than {max} characters", max = limits::ENROL_TOKEN_LEN)]
    NotAToken {
        /// Where.
        path: PathBuf,
    },
    /// Nobody answers.
    #[error("{address} cannot be reached for enrolment: {reason}")]
    Unreachable {
        /// Where.
        address: Address,
        /// Why.
        reason: String,
    },
    /// The exchange broke off.
    #[error("the enrolment at {address} broke off: {source}")]
    Broken {
        /// Where.
        address: Address,
        /// Why.
        source: FrameError,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The node's key or TPM did not do its part.
    #[error("this node could not prove itself: {0}")]
    Proof(String),
    /// The hub, or a gateway on the way, said no.
    #[error("enrolment refused: {0}")]
    Refused(EnrolRefused),
    /// The answer was not one that this step can have.
    #[error("the answer from {0} is not understood: is it of a later version?")]
    NotUnderstood(Address),
    /// What was issued is not for this node.
    #[error("what {address} issued is not taken: {source}")]
    Issued {
        /// Where.
        address: Address,
        /// Why.
        source: IssuedError,
    },
}

impl EnrolError {
    /// Whether it may go away without anybody's doing.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Proof(_) => true,
            Self::Refused(refused) => refused.passing,
            _ => false,
        }
    }
}

/// A node that wants a certificate.
#[derive(Clone)]
pub struct Newcomer {
    /// Where it may ask, tried in turn.
    pub endpoints: Vec<Address>,
    /// The node whose certificate it expects there.
    pub server: NodeId,
    /// The name that it wants; the hub decides where it wants none.
    pub name: Option<NodeId>,
    /// Where the token lies, if it has one.
    pub token_file: Option<PathBuf>,
    /// Whom it trusts.
    pub trust: TrustBundle,
    /// The clock that TLS believes.
    pub clock: Arc<FloorClock>,
    /// What holds its key.
    pub root: Arc<dyn RootOfTrust>,
}

impl Newcomer {
    /// Tries again and again until there is a certificate. It was checked, and is not on disk yet.
    pub async fn until_issued(&self) -> EnrolIssued {
        let (mut pause, mut refused_pause) = (PAUSE_FIRST, PAUSE_REFUSED_FIRST);
        let mut told = None;
        for address in self.endpoints.iter().cycle() {
            let error = match self.attempt(address).await {
                Ok(issued) => {
                    tracing::info!(node = %issued.node, site = %issued.site, "enrolled");
                    return issued;
                }
                Err(error) => error,
            };
            let text = error.to_string();
            let wait = if error.is_passing() {
                let next = (pause * 2).min(PAUSE_MAX);
                std::mem::replace(&mut pause, next)
            } else {
                let next = (refused_pause * 2).min(PAUSE_REFUSED);
                std::mem::replace(&mut refused_pause, next)
            };
            let wait = jittered(wait);
            if told.as_ref() == Some(&text) {
                tracing::debug!(retry_in_ms = wait.as_millis(), "{text}");
            } else {
                tracing::warn!(retry_in_ms = wait.as_millis(), "{text}");
                told = Some(text);
            }
            sleep(wait).await;
        }
        // Without an endpoint there is nobody to ask; the configuration's check does not let that pass.
        std::future::pending().await
    }

    /// Tries once.
    ///
    /// # Errors
    /// [`EnrolError`].
    pub async fn attempt(&self, address: &Address) -> Result<EnrolIssued, EnrolError> {
        let begin = self.begin().await?;
        let issued = self.exchange(address, begin).await?;
        let trust = self.newest_trust(&issued);
        let (name, key) = (self.name.as_ref(), self.key());
        renewal::check(&issued, name, &key, &trust, self.clock.now_s()).map_err(|source| EnrolError::Issued {
            address: address.clone(),
            source,
        })?;
        Ok(issued)
    }

    /// The newest bundle that the newcomer's own leads to.
    #[must_use]
    pub fn newest_trust(&self, issued: &EnrolIssued) -> TrustBundle {
        let mut trust = self.trust.clone();
        for bytes in &issued.bundles {
            if *bytes == trust.bytes() {
                continue;
            }
            match trust.succeed(bytes) {
                Ok(next) => trust = next,
                Err(error) => tracing::info!(%error, "a trust bundle that came with the certificate is not taken"),
            }
        }
        trust
    }

    fn key(&self) -> PublicKey {
        self.root.device_key().public_key().clone()
    }

    async fn begin(&self) -> Result<EnrolBegin, EnrolError> {
        let mut begin = EnrolBegin {
            token: self.token_file.as_deref().map(read_token).transpose()?,
            name: self.name.clone(),
            key: self.key(),
            tier: self.root.tier(),
            tpm: None,
        };
        if begin.tier == Tier::Tpm {
            let (root, binding) = (self.root.clone(), begin.binding());
            begin.tpm = Some(beside(move || shown(&*root, &binding)).await?);
        }
        Ok(begin)
    }

    async fn exchange(&self, address: &Address, begin: EnrolBegin) -> Result<EnrolIssued, EnrolError> {
        let broken = |source| EnrolError::Broken {
            address: address.clone(),
            source,
        };
        let mut stream = self.connect(address).await?;
        let step = EnrolStep::Begin(begin.clone());
        frame::write(&mut stream, &step, ANSWER).await.map_err(broken)?;
        let challenge = match frame::read(&mut stream, ANSWER).await.map_err(broken)? {
            EnrolAnswer::Challenge(challenge) => challenge,
            EnrolAnswer::Refused(refused) => return Err(EnrolError::Refused(refused)),
            EnrolAnswer::Issued(_) | EnrolAnswer::Unknown => return Err(EnrolError::NotUnderstood(address.clone())),
        };
        let (root, session) = (self.root.clone(), challenge.session.clone());
        let proof = beside(move || prove(&*root, &begin, &challenge)).await?;
        let step = EnrolStep::Finish(EnrolFinish { session, proof });
        frame::write(&mut stream, &step, ANSWER).await.map_err(broken)?;
        match frame::read(&mut stream, ANSWER).await.map_err(broken)? {
            EnrolAnswer::Issued(issued) => Ok(issued),
            EnrolAnswer::Refused(refused) => Err(EnrolError::Refused(refused)),
            EnrolAnswer::Challenge(_) | EnrolAnswer::Unknown => Err(EnrolError::NotUnderstood(address.clone())),
        }
    }

    async fn connect(&self, address: &Address) -> Result<tokio_rustls::client::TlsStream<TcpStream>, EnrolError> {
        let unreachable = |reason: String| EnrolError::Unreachable {
            address: address.clone(),
            reason,
        };
        let (config, name) = newcomer_tls(&self.trust, &self.server, self.clock.clone())?;
        let connect = async {
            let stream = TcpStream::connect((address.host(), address.port())).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(config).connect(name, stream).await
        };
        match timeout(CONNECT, connect).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable(format!("no answer within {CONNECT:?}"))),
        }
    }
}

/// What a TPM shows, bound to the beginning.
fn shown(root: &dyn RootOfTrust, binding: &Digest) -> Result<ByteBuf, String> {
    let shown = root.enrolment(&binding.0).map_err(|e| e.to_string())?;
    wire::encode(&shown).map(ByteBuf::from).map_err(|e| e.to_string())
}

/// The proof that a challenge asks for: what a TPM finds in the credential, or a signature by the key in a file.
fn prove(root: &dyn RootOfTrust, begin: &EnrolBegin, challenge: &EnrolChallenge) -> Result<Vec<u8>, String> {
    let Some(credential) = &challenge.credential else {
        if root.tier() != Tier::Soft {
            return Err("the hub sent no credential for this node's TPM".into());
        }
        let message = begin.to_be_signed(&challenge.nonce);
        return root.device_key().sign(&message).map_err(|e| e.to_string());
    };
    let credential: Credential = wire::decode(credential).map_err(|e| format!("the hub's credential: {e}"))?;
    let secret = root.activate(&credential).map_err(|e| e.to_string())?;
    Ok(secret.to_vec())
}

fn read_token(path: &std::path::Path) -> Result<String, EnrolError> {
    let text = std::fs::read_to_string(path).map_err(|source| EnrolError::Token {
        path: path.to_owned(),
        source,
    })?;
    let token = text.trim();
    if token.is_empty() || token.len() > limits::ENROL_TOKEN_LEN {
        return Err(EnrolError::NotAToken { path: path.to_owned() });
    }
    Ok(token.to_owned())
}

/// A TPM blocks: never on the thread of the event loop.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, EnrolError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(EnrolError::Proof),
        Err(error) => Err(EnrolError::Proof(error.to_string())),
    }
}

/// Up to a fifth more or less, so that the nodes of a site do not all come in the same instant.
fn jittered(pause: Duration) -> Duration {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    pause.mul_f64(0.8 + (random % 401) as f64 / 1000.0)
}
