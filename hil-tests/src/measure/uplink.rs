//! What a quiet node says: a proxy between it and its parent counts bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::table::Table;
use super::wrong;
use crate::demo::DemoError;

/// What `UplinkConfig::new` sets, and the daemons do not change.
const KEEP_ALIVE_SECONDS: u64 = 60;

/// A proxy and what went through it: TCP payload, TLS records included.
pub(super) struct Counted {
    what: &'static str,
    pub(super) port: u16,
    up: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
}

impl Counted {
    /// Begins to listen, in a thread of its own, until the program ends.
    pub(super) fn start(what: &'static str, parent: u16) -> Result<Self, DemoError> {
        let (up, down) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(wrong)?;
        listener.set_nonblocking(true).map_err(wrong)?;
        let port = listener.local_addr().map_err(wrong)?.port();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(wrong)?;
        let counters = (up.clone(), down.clone());
        std::thread::spawn(move || runtime.block_on(serve(listener, parent, counters)));
        Ok(Self { what, port, up, down })
    }
}

async fn serve(listener: std::net::TcpListener, parent: u16, (up, down): (Arc<AtomicU64>, Arc<AtomicU64>)) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((child, _)) = listener.accept().await {
        let (up, down) = (up.clone(), down.clone());
        tokio::spawn(async move {
            let Ok(parent) = TcpStream::connect(("127.0.0.1", parent)).await else {
                return;
            };
            let _ = (child.set_nodelay(true), parent.set_nodelay(true));
            let ((child_read, child_write), (parent_read, parent_write)) = (child.into_split(), parent.into_split());
            // When one direction ends, so does the other.
            tokio::select! {
                () = copy(child_read, parent_write, &up) => {}
                () = copy(parent_read, child_write, &down) => {}
            }
        });
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(n as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// Watches the links for a while.
pub(super) fn measure(links: &[Counted], seconds: u64, table: &mut Table) -> Result<(), DemoError> {
    let read = |l: &Counted| (l.up.load(Ordering::Relaxed), l.down.load(Ordering::Relaxed));
    let before: Vec<(u64, u64)> = links.iter().map(read).collect();
    std::thread::sleep(Duration::from_secs(seconds));
    for (link, (up, down)) in links.iter().zip(before) {
        let (up_now, down_now) = read(link);
        let (up, down) = (up_now - up, down_now - down);
        let hour = |bytes: u64| bytes as f64 * 3600.0 / seconds as f64;
        let rate = (up + down) as f64 * 8.0 / seconds as f64 / 1000.0;
        let value = format!("{:.0} B/h up, {:.0} B/h down = {rate:.4} kbit/s", hour(up), hour(down));
        let how = format!(
            "{up} B up and {down} B down in {seconds} s through a proxy, TLS records counted, TCP/IP headers not; MQTT \
             keep-alive every {KEEP_ALIVE_SECONDS} s"
        );
        table.add(&format!("idle uplink of an agent, {}", link.what), value, &how);
    }
    Ok(())
}
