//! Configuration for mosquitto (2.0 or newer) with the access rules of the embedded endpoint.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

/// What a mosquitto needs to know to serve children and one parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MosquittoSettings {
    /// Address to listen on; `None` for all.
    pub bind: Option<IpAddr>,
    /// Port to listen on.
    pub port: u16,
    /// File with the authorities whose certificates children and the parent show (PEM).
    pub cafile: PathBuf,
    /// File with mosquitto's certificate and its intermediates (PEM).
    pub certfile: PathBuf,
    /// File with mosquitto's key (PEM).
    pub keyfile: PathBuf,
    /// File that holds what [`mosquitto_acl`] returns.
    pub acl_file: PathBuf,
    /// Largest packet.
    pub max_packet_bytes: u32,
}

/// `mosquitto.conf`: TLS 1.3 with mutual certificates, the certificate's CN as user name and client id, nothing kept.
#[must_use]
pub fn mosquitto_config(settings: &MosquittoSettings) -> String {
    let MosquittoSettings {
        bind,
        port,
        cafile,
        certfile,
        keyfile,
        acl_file,
        max_packet_bytes,
    } = settings;
    let listener = bind.map_or_else(|| format!("listener {port}"), |bind| format!("listener {port} {bind}"));
    let mut text = String::from("# Written by Cloudnova. Needs mosquitto 2.0 or newer.\n");
    let lines = [
        listener,
        format!("cafile {}", cafile.display()),
        format!("certfile {}", certfile.display()),
        format!("keyfile {}", keyfile.display()),
        "tls_version tlsv1.3".to_owned(),
        "require_certificate true".to_owned(),
        // The CN is the identity. The client id is set from it: otherwise a node could take another one's name and
        // throw it out.
        "use_identity_as_username true".to_owned(),
        "use_username_as_clientid true".to_owned(),
        "allow_anonymous false".to_owned(),
        format!("acl_file {}", acl_file.display()),
        "max_qos 1".to_owned(),
        "max_topic_alias 0".to_owned(),
        "max_keepalive 1200".to_owned(),
        "retain_available false".to_owned(),
        "persistence false".to_owned(),
        format!("max_packet_size {max_packet_bytes}"),
        "max_queued_messages 256".to_owned(),
        "set_tcp_nodelay true".to_owned(),
    ];
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The ACL file: a node may publish to its own `up/` and hear its own `down/`; the parent the other way around.
///
/// `%u` is the CN of the certificate. With the configuration of [`mosquitto_config`] it equals `%c`, the client id.
#[must_use]
pub fn mosquitto_acl(parent: &str) -> String {
    format!(
        "# Written by Cloudnova.\n\
         pattern write cnova/v1/%u/up/+\n\
         pattern read cnova/v1/%u/down/+\n\
         \n\
         user {parent}\n\
         topic read cnova/v1/+/up/+\n\
         topic write cnova/v1/+/down/+\n"
    )
}
