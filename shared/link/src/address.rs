//! `host:port`, as people write it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where a parent listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    host: String,
    port: u16,
}

/// Not an address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{value:?} is not an address: write host:port, such as gw-1.plant:8883, 10.0.0.1:8883 or [fd00::1]:8883")]
pub struct InvalidAddress {
    /// What was written.
    pub value: String,
}

impl Address {
    /// Name or IP address; IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(value: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress {
            value: value.to_owned(),
        };
        let (host, port) = value.rsplit_once(':').ok_or_else(invalid)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        // TLS wants a name or an address without brackets; more than one colon without them is ambiguous.
        let host = match bracketed {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?.to_string(),
            None if host.contains(':') => return Err(invalid()),
            None => host.to_owned(),
        };
        rustls_pki_types::ServerName::try_from(host.as_str()).map_err(|_| invalid())?;
        let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(invalid)?;
        Ok(Self { host, port })
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;
    fn try_from(value: String) -> Result<Self, InvalidAddress> {
        value.parse()
    }
}

impl From<Address> for String {
    fn from(value: Address) -> String {
        value.to_string()
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(value: std::net::SocketAddr) -> Self {
        Self {
            host: value.ip().to_string(),
            port: value.port(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for good in ["localhost:8883", "10.0.0.1:1", "[::1]:8883", "gw-1.plant:8883"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in [
            "localhost",
            "localhost:",
            ":1",
            "a:70000",
            "a:0",
            "::1:8883",
            "[::1]",
            "a b:1",
            "mqtts://a:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
