//! The server's side: strangers may connect here, so everything is bounded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cnova_shared::wire::v1::{EnrolAnswer, EnrolRefused, EnrolStep};
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::version::TLS13;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::frame::{self, FrameError};

/// Steps of one enrolment: begin and finish.
const STEPS_MAX: usize = 2;
/// Questions that wait for the daemon.
const ASKED_WAITING: usize = 32;
/// Pause after the system could not accept, such as when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the door bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorLimits {
    /// Newcomers at once; one more is closed without a word.
    pub sessions: usize,
    /// Newcomers at once from one address (IPv6: from one /64).
    pub per_address: usize,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for a newcomer to send a step. A real TPM takes seconds to open a credential.
    pub step: Duration,
    /// Time for the hub to answer a step.
    pub answer: Duration,
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self {
            sessions: 32,
            per_address: 4,
            handshake: Duration::from_secs(10),
            step: Duration::from_secs(30),
            answer: Duration::from_secs(20),
        }
    }
}

/// Why there is no door.
#[derive(Debug, Error)]
pub enum DoorError {
    /// The address cannot be had.
    #[error("cannot listen for newcomers at {address} ([enrolment] listen): {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system answered.
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS for newcomers: {0}")]
    Tls(#[from] rustls::Error),
}

/// A newcomer's step. Dropping `reply` closes the connection.
#[derive(Debug)]
pub struct Asked {
    /// Where it comes from.
    pub peer: SocketAddr,
    /// What it asks.
    pub step: EnrolStep,
    /// Where the answer goes; closed when the newcomer has gone.
    pub reply: oneshot::Sender<EnrolAnswer>,
}

/// The open door. Dropping it closes it, and ends every session.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shared {
    acceptor: TlsAcceptor,
    limits: DoorLimits,
    asked: mpsc::Sender<Asked>,
    sessions: Arc<Semaphore>,
    peers: Mutex<HashMap<IpAddr, usize>>,
}

/// A session's place, given back when it ends.
struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
    _session: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.address);
            }
        }
    }
}

impl Door {
    /// Opens the door, in a task of its own; call it inside a tokio runtime. `own` is the certificate that newcomers check.
    ///
    /// # Errors
    /// [`DoorError`].
    pub async fn open(
        listen: SocketAddr,
        own: Arc<dyn ResolvesServerCert>,
        limits: DoorLimits,
    ) -> Result<(Self, mpsc::Receiver<Asked>), DoorError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(own);
        // A newcomer comes once.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let unusable = |source| DoorError::Listen {
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        let (asked, questions) = mpsc::channel(ASKED_WAITING);
        let shared = Arc::new(Shared {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            limits,
            asked,
            sessions: Arc::new(Semaphore::new(limits.sessions)),
            peers: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, shared));
        Ok((Self { address, task }, questions))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut sessions = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match shared.admit(peer.ip()) {
                    Some(place) => drop(sessions.spawn(session(stream, peer, place))),
                    None => tracing::debug!(%peer, "too many newcomers: closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept newcomers");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = sessions.join_next() => {}
        }
    }
}

/// One address that somebody may have for free: a whole /64 of IPv6.
fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        },
        v4 => v4,
    }
}

impl Shared {
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let session = self.sessions.clone().try_acquire_owned().ok()?;
        let address = counted_as(peer);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(address).or_default();
        if *count >= self.limits.per_address {
            return None;
        }
        *count += 1;
        drop(peers);
        Some(Place {
            shared: self.clone(),
            address,
            _session: session,
        })
    }
}

async fn session(stream: TcpStream, peer: SocketAddr, place: Place) {
    if let Err(error) = serve(stream, peer, &place.shared).await {
        tracing::debug!(%peer, %error, "a newcomer was not served to the end");
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, shared: &Shared) -> Result<(), FrameError> {
    let limits = shared.limits;
    let handshake = timeout(limits.handshake, shared.acceptor.accept(stream));
    let mut stream = handshake.await.map_err(|_| FrameError::TooSlow(limits.handshake))??;
    for _ in 0..STEPS_MAX {
        let step: EnrolStep = frame::read(&mut stream, limits.step).await?;
        let (reply, answered) = oneshot::channel();
        let answer = match shared.asked.try_send(Asked { peer, step, reply }) {
            Ok(()) => tokio::select! {
                answered = timeout(limits.answer, answered) => match answered {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => busy("the daemon did not answer"),
                    Err(_) => busy("no answer came in time"),
                },
                // It has nothing to say now: it has gone, or breaks the rules.
                _ = stream.read_u8() => return Err(FrameError::Broken(std::io::ErrorKind::ConnectionAborted.into())),
            },
            Err(_) => busy("too many newcomers wait"),
        };
        frame::write(&mut stream, &answer, limits.step).await?;
        if !matches!(answer, EnrolAnswer::Challenge(_)) {
            break;
        }
    }
    // A newcomer that does not take the goodbye loses nothing by it.
    let _ = timeout(limits.handshake, stream.shutdown()).await;
    Ok(())
}

fn busy(why: &str) -> EnrolAnswer {
    EnrolAnswer::Refused(EnrolRefused {
        gate: "busy".into(),
        message: why.into(),
        advice: "try again".into(),
        passing: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let of = |text: &str| counted_as(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
