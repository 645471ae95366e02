//! Frames: length, then CBOR.

use std::time::Duration;

use cnova_shared::limits;
use cnova_shared::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Why a frame did not get through.
#[derive(Debug, Error)]
pub enum FrameError {
    /// Longer than a step of an enrolment may be.
    #[error("a frame of {0} bytes, at most {max} are taken", max = limits::ENROL_BYTES)]
    TooLarge(u64),
    /// It does not hold what it should.
    #[error("a frame that is not understood: {0}")]
    NotUnderstood(#[from] wire::WireError),
    /// The other side closed, or the network broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] std::io::Error),
    /// The other side took too long.
    #[error("nothing came within {0:?}")]
    TooSlow(Duration),
}

/// Reads one frame, whole, within a time.
pub(super) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    within: Duration,
) -> Result<T, FrameError> {
    let whole = async {
        let length = stream.read_u32().await?;
        // Judged before anything is allocated for it.
        if length as usize > limits::ENROL_BYTES {
            return Err(FrameError::TooLarge(length.into()));
        }
        let mut bytes = vec![0; length as usize];
        stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    };
    let bytes = timeout(within, whole)
        .await
        .map_err(|_| FrameError::TooSlow(within))??;
    Ok(wire::decode(&bytes)?)
}

/// Writes one frame within a time.
pub(super) async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &T,
    within: Duration,
) -> Result<(), FrameError> {
    let bytes = wire::encode(value)?;
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|n| *n as usize <= limits::ENROL_BYTES)
        .ok_or(FrameError::TooLarge(bytes.len() as u64))?;
    let whole = async {
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    timeout(within, whole)
        .await
        .map_err(|_| FrameError::TooSlow(within))??;
    Ok(())
}
