//! The listener: HTTP/1.1 with bounds on connections and on the time for a head.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::stop::stopped;

/// Connections at once; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 512;
/// A client has this long to send the head of its next request.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a head, and of the buffer that reads bodies.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long requests under way may still take when the hub stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// After an error of accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why the API cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program has the port.
    #[error(
        "cannot listen on {address} for the API: another program already does. Stop it (`ss -ltnp 'sport = :{port}'` \
         names it) or set [api] listen in the configuration",
        port = .address.port()
    )]
    AddressInUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on for another reason.
    #[error(
        "cannot listen on {address} for the API: {source}. Check that this machine has the address, or set [api] listen"
    )]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Takes the port.
///
/// # Errors
/// [`ListenError`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => ListenError::AddressInUse { address },
        _ => ListenError::Listen { address, source },
    })
}

/// Serves until `stop` says so, then lets requests under way end.
pub async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let told = stop.clone();
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = accept => match accepted {
                (Ok(place), Ok((stream, _))) => {
                    let connection = connection(stream, router.clone(), told.clone());
                    connections.spawn(async move {
                        let _place = place;
                        connection.await;
                    });
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, "the API cannot take a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
                (Err(_), _) => break,
            }
        }
    }
    drop(listener);
    let _ = timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>) {
    // Small answers must not wait for a bigger packet.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return note(ended),
        () = stopped(&mut stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    note(connection.await);
}

fn note(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the API ended");
    }
}
