//! Why a connection is not there, in words that say what to look at.

use std::error::Error;
use std::io;

use rumqttc::v5::mqttbytes::v5::ConnectReturnCode;
use rumqttc::v5::{ConnectionError, StateError};
use rustls::Error as TlsError;

use cnova_shared::ids::NodeId;

use crate::address::Address;

/// What went wrong between this node and `parent` at `address`.
pub(crate) fn of(error: &ConnectionError, parent: &NodeId, address: &Address) -> String {
    if let Some(tls) = find::<TlsError>(error) {
        return of_tls(tls, parent, address);
    }
    // In TLS 1.3 a parent judges our certificate after our side of the handshake is done; rumqttc then keeps of the
    // alert only its text.
    let text = error.to_string();
    if let Some((_, alert)) = text.split_once("received fatal alert: ") {
        return refused_us(parent, alert);
    }
    match error {
        ConnectionError::Timeout(_) => format!("{address} did not answer in time"),
        ConnectionError::ConnectionRefused(code) => of_code(*code, parent),
        ConnectionError::MqttState(StateError::ConnFail { reason }) => of_code(*reason, parent),
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code,
            reason_string,
        }) => {
            let words = reason_string.as_deref().unwrap_or_default();
            format!("{parent} closed the connection: {reason_code:?} {words}")
                .trim_end()
                .to_owned()
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => format!("{parent} stopped answering"),
        ConnectionError::MqttState(StateError::ConnectionAborted) => format!("{parent} closed the connection"),
        other => match find_io(other) {
            Some(io) => of_io(io, address),
            None => text,
        },
    }
}

fn of_tls(error: &TlsError, parent: &NodeId, address: &Address) -> String {
    match error {
        TlsError::InvalidCertificate(why) => {
            format!("the certificate shown by {address} is not accepted as that of {parent}: {why}")
        }
        TlsError::AlertReceived(alert) => refused_us(parent, &format!("{alert:?}")),
        // What rustls passes on from a key that did not sign.
        TlsError::General(why) => format!("TLS with {address} failed: {why}"),
        other => format!("TLS with {address} failed: {other}"),
    }
}

fn refused_us(parent: &NodeId, alert: &str) -> String {
    format!("{parent} refused this node's certificate: {alert}")
}

fn of_code(code: ConnectReturnCode, parent: &NodeId) -> String {
    match code {
        ConnectReturnCode::NotAuthorized => {
            format!("{parent} does not take this node: the certificate's CN must be the node id")
        }
        ConnectReturnCode::QuotaExceeded => {
            format!("{parent} keeps another connection of this identity: two devices use one certificate")
        }
        ConnectReturnCode::ServerBusy => format!("{parent} has no room: {code:?}"),
        other => format!("{parent} refused the connection: {other:?}"),
    }
}

fn of_io(error: &io::Error, address: &Address) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!("nobody listens at {address}"),
        io::ErrorKind::UnexpectedEof => format!("{address} closed the connection without a word"),
        _ => format!("{address}: {error}"),
    }
}

/// The cause of this type, looking into I/O errors too, where rustls hides its own.
fn find<'e, T: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|e| e as &(dyn Error + 'static)).or_else(|| e.source());
    }
    None
}

fn find_io(error: &ConnectionError) -> Option<&io::Error> {
    // The state machine wraps I/O errors without naming them as its source.
    match error {
        ConnectionError::Io(e) | ConnectionError::MqttState(StateError::Io(e)) => Some(e),
        other => find::<io::Error>(other),
    }
}
