//! Accepts sockets; each gets a task of its own before anything is read from it.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::codec::reason;
use crate::connection::{self, Shared};
use crate::handshake::{self, Authenticated, Farewell, Refusal};
use crate::outbox::OutboxLimits;
use crate::registry::NotAdmitted;

/// Pause after `accept` failed, mostly for want of file descriptors: without it the loop would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What connections have to end in at shutdown.
const SHUTDOWN_TIME: Duration = Duration::from_secs(3);

/// The accepting side of an endpoint.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) tls: Arc<RwLock<Arc<ServerConfig>>>,
    pub(crate) shared: Arc<Shared>,
}

impl Listener {
    /// Accepts until `stop` says so, then ends all connections.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let handshakes = Arc::new(Semaphore::new(self.shared.limits.max_handshakes));
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                accepted = self.socket.accept() => match accepted {
                    Ok((tcp, peer)) => self.accept(tcp, peer, &handshakes, &mut tasks),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        let Self { socket, shared, .. } = self;
        drop(socket);
        shared
            .registry
            .close_all(reason::SERVER_SHUTTING_DOWN, "the endpoint is shutting down");
        // What still shakes hands is refused at its admission; what does not end in time is dropped.
        let ended = timeout(SHUTDOWN_TIME, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tasks.shutdown().await;
        }
    }

    fn accept(&self, tcp: TcpStream, peer: SocketAddr, handshakes: &Arc<Semaphore>, tasks: &mut JoinSet<()>) {
        let Ok(slot) = handshakes.clone().try_acquire_owned() else {
            self.shared.report(peer, None, "too many handshakes at once".to_owned());
            return;
        };
        let config = self.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
        let shared = self.shared.clone();
        tasks.spawn(async move {
            if let Err(refusal) = attend(&shared, TlsAcceptor::from(config), tcp, peer, slot).await {
                let Refusal { node, reason, farewell } = refusal;
                shared.report(peer, node.as_deref(), reason.clone());
                if let Some(farewell) = farewell {
                    farewell.say(&reason).await;
                }
            }
        });
    }
}

async fn attend(
    shared: &Shared,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
    slot: OwnedSemaphorePermit,
) -> Result<(), Refusal> {
    let limits = &shared.limits;
    let deadline = Instant::now() + limits.handshake_timeout;
    let authenticated = timeout_at(deadline, handshake::authenticate(acceptor, tcp, peer))
        .await
        .map_err(|_| {
            Refusal::stranger(format!(
                "no TLS handshake and CONNECT within {:?}",
                limits.handshake_timeout
            ))
        })??;
    if let Some(reason) = shared.refuses(&authenticated.certificate) {
        return Err(turned_away(authenticated, reason));
    }
    let outbox_limits = OutboxLimits::new(
        limits,
        authenticated.connect.receive_maximum,
        authenticated.connect.maximum_packet_size,
    );
    let admitted = shared
        .registry
        .admit(&authenticated.node, outbox_limits, deadline)
        .await;
    drop(slot);
    let outbox = match admitted {
        Ok(outbox) => outbox,
        Err(refused) => {
            let code = match refused {
                NotAdmitted::Conflict(_) => reason::QUOTA_EXCEEDED,
                NotAdmitted::StillClosing(_) | NotAdmitted::Full(_) => reason::SERVER_BUSY,
                NotAdmitted::ShuttingDown => reason::SERVER_SHUTTING_DOWN,
            };
            let farewell = Some(Farewell {
                stream: authenticated.stream,
                code,
            });
            return Err(Refusal {
                node: Some(authenticated.node),
                reason: refused.to_string(),
                farewell,
            });
        }
    };
    shared.registry.certify(&outbox, authenticated.certificate.clone());
    // The gate may have been replaced since it was asked.
    if let Some(why) = shared.refuses(&authenticated.certificate) {
        outbox.close(reason::NOT_AUTHORIZED, why);
    }
    let node = authenticated.node.clone();
    tracing::debug!(%node, %peer, "connected");
    let (end, halves) = connection::serve(shared, authenticated, outbox).await;
    tracing::debug!(%node, %peer, reason = end.reason, "disconnected");
    if end.is_offence {
        shared.report(peer, Some(&node), end.reason);
    }
    if let Some(halves) = halves {
        connection::say_farewell(halves).await;
    }
    Ok(())
}

fn turned_away(authenticated: Authenticated, reason: String) -> Refusal {
    let farewell = Some(Farewell {
        stream: authenticated.stream,
        code: reason::NOT_AUTHORIZED,
    });
    Refusal {
        node: Some(authenticated.node),
        reason,
        farewell,
    }
}

/// Returns when `stop` says so or the endpoint was dropped.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
