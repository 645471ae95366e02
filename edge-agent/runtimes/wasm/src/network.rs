//! The allow list of the network: which peers a workload may connect to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::sockets::SocketAddrUse;

/// A grant that does not say which peer.
#[derive(Debug, thiserror::Error)]
#[error("grants.network: `{grant}` is not `host:port` or `[v6 address]:port`")]
pub(crate) struct GrantError {
    grant: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// Asked of the resolver at each connect, since its address may change.
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Peer {
    host: Host,
    port: u16,
}

/// Denies everything, then allows outgoing TCP to exactly these peers. Listening and UDP stay denied.
/// Names can be looked up only if a grant holds a name.
pub(crate) fn grant(builder: &mut WasiCtxBuilder, grants: &[String]) -> Result<(), GrantError> {
    let peers = grants.iter().map(|grant| parse(grant)).collect::<Result<Vec<_>, _>>()?;
    let by_name = peers.iter().any(|peer| matches!(peer.host, Host::Name(_)));
    builder.allow_udp(false);
    builder.allow_tcp(!peers.is_empty());
    builder.allow_ip_name_lookup(by_name);
    let peers = Arc::new(peers);
    builder.socket_addr_check(move |address, what| {
        let peers = peers.clone();
        Box::pin(async move {
            match what {
                SocketAddrUse::TcpConnect => allows(&peers, address).await,
                // A socket that connects is bound to some free port first.
                SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
                _ => false,
            }
        })
    });
    Ok(())
}

async fn allows(peers: &[Peer], address: SocketAddr) -> bool {
    for peer in peers.iter().filter(|peer| peer.port == address.port()) {
        match &peer.host {
            Host::Address(allowed) if *allowed == address.ip() => return true,
            Host::Address(_) => {}
            Host::Name(name) => {
                let found = tokio::net::lookup_host((name.as_str(), peer.port)).await;
                if found.is_ok_and(|mut found| found.any(|found| found.ip() == address.ip())) {
                    return true;
                }
            }
        }
    }
    false
}

fn parse(grant: &str) -> Result<Peer, GrantError> {
    let error = || GrantError {
        grant: grant.to_owned(),
    };
    if let Ok(address) = grant.parse::<SocketAddr>() {
        return Ok(Peer {
            host: Host::Address(address.ip()),
            port: address.port(),
        });
    }
    let (name, port) = grant.rsplit_once(':').ok_or_else(error)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match port.parse() {
        Ok(port) if port > 0 && !name.is_empty() && name.bytes().all(plain) => Ok(Peer {
            host: Host::Name(name.to_owned()),
            port,
        }),
        _ => Err(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_name_one_peer_each() {
        let good = ["10.0.0.1:502", "[fd00::1]:4840", "historian.plant:8086"];
        assert!(good.iter().all(|grant| parse(grant).is_ok()));
        for bad in [
            "",
            "host",
            ":80",
            "host:",
            "host:0",
            "host:99999",
            "*:80",
            "http://x:1",
            "fd00::1",
            "a b:1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_granted_address_and_port_are_allowed() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let peers = [parse("10.0.0.1:502").unwrap(), parse("localhost:7").unwrap()];
        let allowed = |address: &str| runtime.block_on(allows(&peers, address.parse().unwrap()));
        assert!(allowed("10.0.0.1:502"));
        assert!(allowed("127.0.0.1:7"));
        for denied in ["10.0.0.1:503", "10.0.0.2:502", "127.0.0.1:502", "[::ffff:10.0.0.1]:502"] {
            assert!(!allowed(denied), "{denied}");
        }
    }
}
