//! Devices, addresses and routes over a blocking route-netlink socket, which belongs to the namespace it was opened in.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::netns::NetNs;

/// A hardware address, in wire order.
pub type Mac = [u8; 6];

/// A route-netlink connection to one namespace.
pub struct Links {
    socket: Socket,
    sequence: u32,
}

impl Links {
    /// Opens a connection to `net`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel has no netlink.
    pub fn open(net: &NetNs) -> Result<Self> {
        net.run(|| -> Result<Self> {
            let mut socket = Socket::new(NETLINK_ROUTE).context("cannot open a route-netlink socket")?;
            socket.bind_auto().context("cannot bind the route-netlink socket")?;
            socket.connect(&SocketAddr::new(0, 0)).context("cannot connect the route-netlink socket")?;
            Ok(Self { socket, sequence: 0 })
        })?
    }

    /// Makes a veth pair: `name` here, `peer` in `peer_net` from its first moment, as a CNI plugin does it. Both are down.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn add_veth(&mut self, name: &str, mac: Option<Mac>, mtu: u32, peer: &str, peer_net: &NetNs) -> Result<()> {
        use std::os::fd::AsFd;
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::NetNsFd(peer_net.as_fd().as_raw_fd()),
        ];
        let mut near = LinkMessage::default();
        near.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
            ]),
        ];
        near.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        self.create(RouteNetlinkMessage::NewLink(near))
            .with_context(|| format!("cannot make the veth pair {name}, {peer}"))
    }

    /// Makes a bridge; it is down. Its hardware address is fixed, or it would change with the bridge's ports.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn add_bridge(&mut self, name: &str, mac: Mac) -> Result<()> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.create(RouteNetlinkMessage::NewLink(link)).with_context(|| format!("cannot make the bridge {name}"))
    }

    /// Puts a device under a bridge.
    ///
    /// # Errors
    /// When either does not exist.
    pub fn set_master(&mut self, name: &str, bridge: &str) -> Result<()> {
        let controller = self.index(bridge)?;
        self.change(name, |link| link.attributes.push(LinkAttribute::Controller(controller)))
            .with_context(|| format!("cannot put {name} under {bridge}"))
    }

    /// Switches a device on.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn up(&mut self, name: &str) -> Result<()> {
        self.change(name, |link| {
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
        })
        .with_context(|| format!("cannot switch {name} on"))
    }

    /// Changes a device's MTU.
    ///
    /// # Errors
    /// When it does not exist or refuses the value.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<()> {
        self.change(name, |link| link.attributes.push(LinkAttribute::Mtu(mtu)))
            .with_context(|| format!("cannot set the MTU of {name} to {mtu}"))
    }

    /// Removes a device, and with a veth its peer.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.request(RouteNetlinkMessage::DelLink(link), 0).map(drop).with_context(|| format!("cannot remove {name}"))
    }

    /// Gives a device an address with its prefix. IPv6 addresses are usable at once (no duplicate detection).
    ///
    /// # Errors
    /// When it has the address already.
    pub fn add_address(&mut self, name: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = self.index(name)?;
        message.header.prefix_len = prefix_len;
        message.header.family = family(address);
        message.attributes.push(AddressAttribute::Address(address));
        if address.is_ipv4() {
            message.attributes.push(AddressAttribute::Local(address));
        } else {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.create(RouteNetlinkMessage::NewAddress(message))
            .with_context(|| format!("cannot give {name} the address {address}/{prefix_len}"))
    }

    /// Adds a route to `destination/prefix_len` over `device`, by way of `gateway` if there is one. A gateway need not
    /// be in any of the device's prefixes.
    ///
    /// # Errors
    /// When the route is there already or the gateway cannot be reached over the device.
    pub fn add_route(
        &mut self,
        destination: IpAddr,
        prefix_len: u8,
        gateway: Option<IpAddr>,
        device: &str,
    ) -> Result<()> {
        let message = self.route(destination, prefix_len, gateway, device)?;
        self.create(RouteNetlinkMessage::NewRoute(message))
            .with_context(|| format!("cannot add a route to {destination}/{prefix_len} over {device}"))
    }

    /// As [`Links::add_route`], in place of a route to the same destination, if there is one.
    ///
    /// # Errors
    /// When the gateway cannot be reached over the device.
    pub fn replace_route(
        &mut self,
        destination: IpAddr,
        prefix_len: u8,
        gateway: Option<IpAddr>,
        device: &str,
    ) -> Result<()> {
        let message = self.route(destination, prefix_len, gateway, device)?;
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
            .with_context(|| format!("cannot change the route to {destination}/{prefix_len} over {device}"))
    }

    /// A route to `destination/prefix_len` over `device`, by way of all these gateways: each flow takes one of them, by a hash.
    /// In place of a route to the same destination, if there is one.
    ///
    /// # Errors
    /// When a gateway cannot be reached over the device, or there is none.
    pub fn replace_multipath(
        &mut self,
        destination: IpAddr,
        prefix_len: u8,
        gateways: &[IpAddr],
        device: &str,
    ) -> Result<()> {
        let index = self.index(device)?;
        let hop = |gateway: &IpAddr| {
            let mut hop = RouteNextHop::default();
            hop.flags = RouteNextHopFlags::Onlink;
            hop.interface_index = index;
            hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(*gateway))];
            hop
        };
        let mut message = destined(destination, prefix_len);
        message.attributes.push(RouteAttribute::MultiPath(gateways.iter().map(hop).collect()));
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
            .with_context(|| format!("cannot lead {destination}/{prefix_len} over {device} to {gateways:?}"))
    }

    /// Removes the route to `destination/prefix_len`.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_route(&mut self, destination: IpAddr, prefix_len: u8) -> Result<()> {
        self.request(RouteNetlinkMessage::DelRoute(destined(destination, prefix_len)), 0)
            .map(drop)
            .with_context(|| format!("cannot remove the route to {destination}/{prefix_len}"))
    }

    fn route(
        &mut self,
        destination: IpAddr,
        prefix_len: u8,
        gateway: Option<IpAddr>,
        device: &str,
    ) -> Result<RouteMessage> {
        let mut message = destined(destination, prefix_len);
        if gateway.is_none() && destination.is_ipv4() {
            message.header.scope = RouteScope::Link;
        }
        message.attributes.push(RouteAttribute::Oif(self.index(device)?));
        if let Some(gateway) = gateway {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        }
        Ok(message)
    }

    /// Says for good which hardware address an address has behind a device: nobody has to answer for it.
    ///
    /// # Errors
    /// When the device does not exist, or the address is known already.
    pub fn add_neighbour(&mut self, name: &str, address: IpAddr, mac: Mac) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = self.index(name)?;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::from(address)),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.create(RouteNetlinkMessage::NewNeighbour(message))
            .with_context(|| format!("cannot make {address} a neighbour behind {name}"))
    }

    /// A device's index.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn index(&mut self, name: &str) -> Result<u32> {
        Ok(self.get(name)?.header.index)
    }

    /// A device's hardware address.
    ///
    /// # Errors
    /// When the device does not exist or has none.
    pub fn mac(&mut self, name: &str) -> Result<Mac> {
        let link = self.get(name)?;
        link.attributes
            .iter()
            .find_map(
                |attribute| {
                    if let LinkAttribute::Address(mac) = attribute { mac.as_slice().try_into().ok() } else { None }
                },
            )
            .ok_or_else(|| anyhow!("device {name} has no hardware address"))
    }

    fn get(&mut self, name: &str) -> Result<LinkMessage> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = self
            .request(RouteNetlinkMessage::GetLink(link), 0)
            .with_context(|| format!("there is no device {name} in this namespace"))?;
        for answer in answers {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                return Ok(link);
            }
        }
        bail!("the kernel did not describe the device {name}")
    }

    fn change(&mut self, name: &str, edit: impl FnOnce(&mut LinkMessage)) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(name)?;
        edit(&mut link);
        self.request(RouteNetlinkMessage::SetLink(link), 0).map(drop)
    }

    fn create(&mut self, message: RouteNetlinkMessage) -> Result<()> {
        self.request(message, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Sends one request and reads up to its acknowledgement.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).context("cannot send to the kernel")?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().context("cannot read the kernel's answer")?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| anyhow!("cannot understand the kernel's answer: {e}"))?;
                let length = usize::try_from(answer.header.length)?.next_multiple_of(4).max(16);
                let ours = answer.header.sequence_number == self.sequence;
                match answer.payload {
                    NetlinkPayload::Error(error) if ours => {
                        return match error.code {
                            None => Ok(answers),
                            Some(_) => Err(error.to_io().into()),
                        };
                    }
                    NetlinkPayload::InnerMessage(inner) if ours => answers.push(inner),
                    NetlinkPayload::Done(_)
                    | NetlinkPayload::Error(_)
                    | NetlinkPayload::Noop
                    | NetlinkPayload::Overrun(_)
                    | NetlinkPayload::InnerMessage(_)
                    | _ => {}
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

/// A unicast route in the main table, without what it leads over.
fn destined(destination: IpAddr, prefix_len: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = prefix_len;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    if prefix_len > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
    }
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
