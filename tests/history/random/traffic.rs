//! UDP probes between pods, their gateways and a host outside, all at once in one loop.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, poll};

use super::action::Target;
use crate::support::{Namespace, Node};

/// The port of the gateways and of the host outside. Pods use ephemeral ports, so that each probe is a new conntrack
/// entry: an existing entry is translated even after its rule was removed.
const PORT: u16 = 7777;

/// The number of rounds to wait for an answer that may be missing, and for one that is required: the kernel repeats a
/// neighbour request after a second (net.ipv4.neigh.default.retrans_time_ms).
pub const ROUNDS: u32 = 14;
pub const PATIENT_ROUNDS: u32 = 120;

const ROUND_MILLISECONDS: u16 = 30;

/// The other end of a probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Gateway,
    Outside,
    Pod(Target),
}

/// Connectivity in one direction and address family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub from: Target,
    pub to: Peer,
    pub is_v6: bool,
}

impl Edge {
    /// Whether an attachment is one of the ends.
    pub fn touches(&self, target: &Target) -> bool {
        self.from == *target || self.to == Peer::Pod(target.clone())
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.is_v6 { "IPv6" } else { "IPv4" };
        match &self.to {
            Peer::Gateway => write!(f, "{family} from {} to its gateway", self.from),
            Peer::Outside => write!(f, "{family} from {} to the host outside", self.from),
            Peer::Pod(to) => write!(f, "{family} from {} to {to}", self.from),
        }
    }
}

/// An end that sends probes.
pub struct Sender<'p> {
    pub target: Target,
    pub namespace: &'p Namespace,
    pub addresses: Vec<IpAddr>,
    pub gateways: Vec<IpAddr>,
    pub is_masqueraded: bool,
}

/// The sockets that reply on the node and outside.
pub struct Traffic {
    answering: Vec<UdpSocket>,
    outside: [IpAddr; 2],
}

impl Traffic {
    /// Listens on the node and on the host outside, which has these addresses.
    pub fn new(node: &Node, world: &Node, outside: [IpAddr; 2]) -> Traffic {
        // A socket of the unspecified IPv6 address receives IPv4 as well.
        let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let listen = |namespace: &Namespace| namespace.inside(|| open_socket(any, PORT).unwrap());
        let answering = vec![listen(node), listen(world)];
        Traffic { answering, outside }
    }

    /// The probes that are answered. Waits for those that are `expected`; others count if their answer arrives in the
    /// meantime.
    pub fn measure(
        &self,
        senders: &[Sender<'_>],
        expected: &BTreeSet<Edge>,
        rounds: u32,
    ) -> BTreeSet<Edge> {
        let mut sockets: Vec<UdpSocket> = Vec::new();
        let mut at: BTreeMap<(Target, bool), (usize, SocketAddr)> = BTreeMap::new();
        for sender in senders {
            let open = || -> Vec<UdpSocket> {
                let bound = sender.addresses.iter().map(|ip| open_socket(*ip, 0));
                bound.flatten().collect()
            };
            for socket in sender.namespace.inside(open) {
                let address = socket.local_addr().unwrap();
                let key = (sender.target.clone(), address.is_ipv6());
                at.insert(key, (sockets.len(), address));
                sockets.push(socket);
            }
        }
        let mut probes = Vec::new();
        for sender in senders {
            for is_v6 in [false, true] {
                let Some((socket, _)) = at.get(&(sender.target.clone(), is_v6)) else {
                    continue;
                };
                for (to, address) in self.destinations(sender, senders, is_v6, &at) {
                    let from = sender.target.clone();
                    probes.push((Edge { from, to, is_v6 }, *socket, address));
                }
            }
        }
        sockets.extend(self.answering.iter().map(|it| it.try_clone().unwrap()));
        let wanted = probes
            .iter()
            .map(|(edge, ..)| expected.contains(edge))
            .collect();
        let round = Round {
            sockets: &sockets,
            probes: &probes,
            wanted,
        };
        let answered = round.run(rounds);
        let edges = probes.into_iter().zip(answered);
        edges
            .filter(|(_, answered)| *answered)
            .map(|((edge, ..), _)| edge)
            .collect()
    }

    fn destinations(
        &self,
        sender: &Sender<'_>,
        all: &[Sender<'_>],
        is_v6: bool,
        at: &BTreeMap<(Target, bool), (usize, SocketAddr)>,
    ) -> Vec<(Peer, SocketAddr)> {
        let mut to = Vec::new();
        let gateways = sender.gateways.iter().filter(|ip| ip.is_ipv6() == is_v6);
        to.extend(gateways.map(|ip| (Peer::Gateway, SocketAddr::new(*ip, PORT))));
        if sender.is_masqueraded {
            let outside = self.outside.iter().filter(|ip| ip.is_ipv6() == is_v6);
            to.extend(outside.map(|ip| (Peer::Outside, SocketAddr::new(*ip, PORT))));
        }
        let peers = all.iter().map(|it| &it.target);
        let peers = peers.filter(|it| it.network == sender.target.network && **it != sender.target);
        for peer in peers {
            if let Some((_, address)) = at.get(&(peer.clone(), is_v6)) {
                to.push((Peer::Pod(peer.clone()), *address));
            }
        }
        to
    }
}

/// The exchange of all probes.
struct Round<'a> {
    sockets: &'a [UdpSocket],
    probes: &'a [(Edge, usize, SocketAddr)],
    wanted: Vec<bool>,
}

impl Round<'_> {
    fn run(&self, rounds: u32) -> Vec<bool> {
        let mut answered = vec![false; self.probes.len()];
        for _ in 0..rounds {
            for (number, (_, socket, to)) in self.probes.iter().enumerate() {
                if !answered[number] {
                    // Without a route send fails; the probe counts as unanswered.
                    let _ = self.sockets[*socket].send_to(format!("Q{number}").as_bytes(), to);
                }
            }
            let mut is_complete = false;
            // Waits one more round for the others after the last expected answer.
            while self.receive(
                if is_complete { 1 } else { ROUND_MILLISECONDS },
                &mut answered,
            ) {
                let mut missing = self.wanted.iter().zip(&answered);
                is_complete = !missing.any(|(wanted, answered)| *wanted && !answered);
            }
            let mut missing = self.wanted.iter().zip(&answered);
            if !missing.any(|(wanted, answered)| *wanted && !answered) {
                break;
            }
        }
        answered
    }

    /// Replies to probes and records answers. False if nothing arrived in time.
    fn receive(&self, milliseconds: u16, answered: &mut [bool]) -> bool {
        let flags = PollFlags::POLLIN;
        let mut ready: Vec<PollFd<'_>> = self
            .sockets
            .iter()
            .map(|it| PollFd::new(it.as_fd(), flags))
            .collect();
        if poll(&mut ready, milliseconds).unwrap_or(0) == 0 {
            return false;
        }
        let ready: Vec<bool> = ready.iter().map(|it| it.any().unwrap_or(false)).collect();
        let mut buffer = [0; 32];
        for (socket, _) in self.sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
                if let Some(number) = text.strip_prefix('Q') {
                    let _ = socket.send_to(format!("A{number}").as_bytes(), from);
                } else if let Some(number) = text.strip_prefix('A').and_then(|it| it.parse().ok()) {
                    let number: usize = number;
                    answered
                        .get_mut(number)
                        .into_iter()
                        .for_each(|it| *it = true);
                }
            }
        }
        true
    }
}

fn open_socket(address: IpAddr, port: u16) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
