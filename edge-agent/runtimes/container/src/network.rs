//! The container's network: loopback in a namespace of its own, and a veth pair to the node where one is asked for.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use cnova_ral::settings::OwnNetwork;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::sys::{self, Ended, Forked};

/// The container's end of the pair.
const INNER: &str = "eth0";
/// Longest answer of the kernel, in bytes.
const ANSWER_BYTES: usize = 32 << 10;
/// How long the configuration inside the container's namespace may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a name that an ended container still has is tried again.
const STALE_ATTEMPTS: u32 = 100;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("settings.network: {0}")]
    Settings(String),
    #[error("network: cannot {action}: {source}")]
    Kernel { action: &'static str, source: io::Error },
}

/// Checks what the kernel would accept and a person did not mean.
pub(crate) fn check(own: &OwnNetwork) -> Result<(), NetworkError> {
    let refused = |text: String| Err(NetworkError::Settings(text));
    if !(8..=31).contains(&own.prefix) {
        return refused(format!("prefix {} is not between 8 and 31", own.prefix));
    }
    let mask = u32::MAX << (32 - u32::from(own.prefix));
    let network = |address: Ipv4Addr| u32::from(address) & mask;
    if own.address == own.gateway || network(own.address) != network(own.gateway) {
        return refused(format!(
            "address {} and gateway {} must be two addresses of one network of {} bits",
            own.address, own.gateway, own.prefix
        ));
    }
    if [own.address, own.gateway]
        .iter()
        .any(|a| a.is_loopback() || a.is_multicast() || a.is_unspecified())
    {
        return refused("loopback, multicast and unspecified addresses cannot be used".into());
    }
    Ok(())
}

/// Loopback up, in the namespace of the container.
pub(crate) fn loopback(namespace: BorrowedFd<'_>) -> Result<(), NetworkError> {
    inside(namespace, "configure loopback", |netlink| {
        let lo = index_of("lo")?;
        netlink.up(lo)
    })
}

/// A veth pair between node and container. It goes with the container's namespace.
pub(crate) fn connect(namespace: BorrowedFd<'_>, id: &str, own: &OwnNetwork) -> Result<(), NetworkError> {
    let outer = format!("cnv{id}");
    let failed = |action| move |source| NetworkError::Kernel { action, source };
    let mut netlink = Netlink::open().map_err(failed("open netlink"))?;
    netlink
        .veth(&outer, namespace.as_raw_fd())
        .map_err(failed("make a veth pair"))?;
    let index = index_of(&outer).map_err(failed("find the veth pair"))?;
    netlink
        .address(index, own.gateway, own.prefix)
        .map_err(failed("give the node its address"))?;
    netlink.up(index).map_err(failed("bring the node's end up"))?;
    inside(namespace, "configure the container's end", |netlink| {
        let index = index_of(INNER)?;
        netlink.address(index, own.address, own.prefix)?;
        netlink.up(index)?;
        netlink.default_route(own.gateway)
    })
}

/// Does something in another network namespace: in a process of its own, which ends there.
fn inside(
    namespace: BorrowedFd<'_>,
    action: &'static str,
    act: impl FnOnce(&mut Netlink) -> io::Result<()>,
) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Kernel { action, source };
    // SAFETY: the keeper has one thread.
    match unsafe { sys::fork(false) }.map_err(failed)? {
        Forked::Child => {
            let done = sys::enter(namespace, libc::CLONE_NEWNET)
                .and_then(|()| Netlink::open())
                .and_then(|mut netlink| act(&mut netlink));
            sys::exit(done.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO)))
        }
        Forked::Parent(pid) => match sys::reap_within(pid, PATIENCE) {
            Some(Ended::Code(0)) => Ok(()),
            Some(Ended::Code(errno)) => Err(failed(io::Error::from_raw_os_error(errno))),
            other => Err(failed(io::Error::other(format!("{other:?}")))),
        },
    }
}

fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(socket.as_fd(), name)?)
}

struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// A container that has just ended keeps its pair until the kernel has put its namespace away.
    fn veth(&mut self, outer: &str, namespace: i32) -> io::Result<()> {
        for _ in 0..STALE_ATTEMPTS {
            match self.try_veth(outer, namespace) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    self.delete(outer)?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => return other,
            }
        }
        Err(io::Error::from_raw_os_error(libc::EEXIST))
    }

    fn try_veth(&mut self, outer: &str, namespace: i32) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(INNER.into()));
        peer.attributes.push(LinkAttribute::NetNsFd(namespace));
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(outer.into()));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.ask(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn delete(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.into()));
        match self.ask(RouteNetlinkMessage::DelLink(link), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    fn up(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
        message.attributes.push(AddressAttribute::Address(IpAddr::V4(address)));
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        self.ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sends a request and waits for the kernel's yes or no.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answer = vec![0; ANSWER_BYTES];
        let count = self.socket.recv(&mut &mut answer[..], 0)?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..count]).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
            },
            _ => Err(io::Error::other("the kernel did not answer the question")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        let own = |address: &str, prefix, gateway: &str| OwnNetwork {
            address: address.parse().unwrap(),
            prefix,
            gateway: gateway.parse().unwrap(),
        };
        check(&own("10.9.0.2", 24, "10.9.0.1")).unwrap();
        check(&own("10.9.0.0", 31, "10.9.0.1")).unwrap();
        for wrong in [
            own("10.9.0.2", 32, "10.9.0.1"),
            own("10.9.0.2", 0, "10.9.0.1"),
            own("10.9.0.1", 24, "10.9.0.1"),
            own("10.9.1.2", 24, "10.9.0.1"),
            own("127.0.0.2", 24, "127.0.0.1"),
        ] {
            assert!(check(&wrong).is_err(), "{wrong:?}");
        }
    }
}
