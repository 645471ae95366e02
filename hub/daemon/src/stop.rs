//! Being told to stop.

use tokio::sync::watch;

/// Waits until somebody says so; a sender that is gone says so too.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
