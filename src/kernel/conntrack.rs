//! Connection tracking entries of the thread's network namespace (net/netfilter/nf_conntrack_netlink.c).

use std::net::IpAddr;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkPayload,
    ParseableParametrized,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Status, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::kernel::netlink_socket::{NetlinkSocket, Progress, ReceiveError};
use crate::net::Family;

/// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_CTNETLINK: u16 = 1;

/// The length of struct nfgenmsg (linux/netfilter/nfnetlink.h), in bytes.
const NFGENMSG_LEN: usize = 4;

/// The type of a new entry in a dump (enum cntl_msg_types, linux/netfilter/nfnetlink_conntrack.h).
const IPCTNL_MSG_CT_NEW: u8 = 0;

/// Why entries could not be listed or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConntrackError {
    #[error("{}", .0.desc())]
    Refused(Errno),
    #[error("the kernel did not answer in time")]
    NoAnswer,
    #[error("the kernel's answer cannot be parsed")]
    Malformed,
}

impl From<ReceiveError> for ConntrackError {
    fn from(error: ReceiveError) -> ConntrackError {
        match error {
            ReceiveError::NotSent(errno) | ReceiveError::Broken(errno) => {
                ConntrackError::Refused(errno)
            }
            ReceiveError::TimedOut => ConntrackError::NoAnswer,
            ReceiveError::Malformed => ConntrackError::Malformed,
        }
    }
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IPPROTO_*
    pub protocol: u8,
    /// The address and port to which the first packet was sent.
    pub destination: IpAddr,
    pub port: u16,
    /// The address that answers.
    pub answering: IpAddr,
    /// Whether a rule translated the destination.
    pub is_translated: bool,
    original: Vec<Tuple>,
}

/// Which entries the kernel lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    All,
    /// Those whose destination was translated. Linux before 5.18 lists all.
    Translated,
}

/// Deletes the entries that match. The kernel walks its whole table for a list, which takes 10 ms with 262,144 buckets.
///
/// # Errors
/// When the kernel refuses. Without connection tracking there are no entries.
pub fn delete_flows(
    selection: Selection,
    matches: &dyn Fn(&Flow) -> bool,
) -> Result<(), ConntrackError> {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    if count.is_ok_and(|count| count.trim() == "0") {
        return Ok(());
    }
    let socket = NetlinkSocket::open(NETLINK_NETFILTER, 0).map_err(|cause| {
        ConntrackError::Refused(Errno::from_raw(cause.raw_os_error().unwrap_or(0)))
    })?;
    let get = ConntrackMessage::Get(match selection {
        Selection::All => Vec::new(),
        Selection::Translated => vec![ConntrackAttribute::CtaStatus(Status::DstNat)],
    });
    let mut flows = Vec::new();
    let number = send(
        &socket,
        NetfilterProtoFamily::Unspec,
        get,
        NLM_F_REQUEST | NLM_F_DUMP,
    )?;
    let listed = socket.answers(1, number, |_, payload| match payload {
        NetlinkPayload::Error(error) => refused(error.raw_code()).map(|()| Progress::More),
        NetlinkPayload::Done(_) => Ok(Progress::Done),
        NetlinkPayload::InnerMessage(message) => {
            let attributes = message.body.get(NFGENMSG_LEN..).unwrap_or_default();
            flows.extend(Flow::parse(attributes).filter(|flow| matches(flow)));
            Ok(Progress::More)
        }
        _ => Ok(Progress::More),
    });
    match listed {
        // nfnetlink answers EINVAL if the subsystem is not registered.
        Err(ConntrackError::Refused(Errno::EINVAL | Errno::EOPNOTSUPP)) => return Ok(()),
        listed => listed?,
    }
    for flow in flows {
        let family = match Family::of(flow.destination) {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        let tuple = ConntrackAttribute::CtaTupleOrig(flow.original);
        let delete = ConntrackMessage::Delete(vec![tuple]);
        let number = send(&socket, family, delete, NLM_F_REQUEST | NLM_F_ACK)?;
        socket.answers(1, number, |_, payload| match payload {
            NetlinkPayload::Error(error) => match refused(error.raw_code()) {
                // It has expired meanwhile.
                Err(ConntrackError::Refused(Errno::ENOENT)) => Ok(Progress::Done),
                outcome => outcome.map(|()| Progress::Done),
            },
            _ => Ok(Progress::More),
        })?;
    }
    Ok(())
}

/// Sends a message. `NetfilterMessage` would link the encoding of all subsystems.
fn send(
    socket: &NetlinkSocket,
    family: NetfilterProtoFamily,
    message: ConntrackMessage,
    flags: u16,
) -> Result<u32, ConntrackError> {
    let nfgenmsg = NetfilterHeader::new(family, 0, 0);
    let number = socket.next_sequence_number(1);
    let mut header = NetlinkHeader::default();
    header.message_type = NFNL_SUBSYS_CTNETLINK << 8 | u16::from(u8::from(message.message_type()));
    header.flags = flags;
    header.sequence_number = number;
    let lengths = [
        header.buffer_len(),
        nfgenmsg.buffer_len(),
        message.buffer_len(),
    ];
    header.length = lengths.iter().sum::<usize>() as u32;
    let mut datagram = vec![0; lengths.iter().sum()];
    header.emit(&mut datagram);
    nfgenmsg.emit(&mut datagram[lengths[0]..]);
    message.emit(&mut datagram[lengths[0] + lengths[1]..]);
    socket.send(&datagram)?;
    Ok(number)
}

/// The error of an answer: 0 or a negative errno.
fn refused(code: i32) -> Result<(), ConntrackError> {
    match code {
        0 => Ok(()),
        code => Err(ConntrackError::Refused(Errno::from_raw(-code))),
    }
}

impl Flow {
    fn parse(attributes: &[u8]) -> Option<Flow> {
        let parsed = ConntrackMessage::parse_with_param(attributes, IPCTNL_MSG_CT_NEW);
        let Ok(ConntrackMessage::New(attributes)) = parsed else {
            return None;
        };
        let (mut original, mut reply, mut is_translated) = (Vec::new(), Vec::new(), false);
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(tuple) => original = tuple,
                ConntrackAttribute::CtaTupleReply(tuple) => reply = tuple,
                ConntrackAttribute::CtaStatus(status) => {
                    is_translated = status.contains(Status::DstNat);
                }
                _ => {}
            }
        }
        let destination = addresses(&original).find_map(|it| match it {
            IPTuple::DestinationAddress(address) => Some(*address),
            _ => None,
        })?;
        let answering = addresses(&reply).find_map(|it| match it {
            IPTuple::SourceAddress(address) => Some(*address),
            _ => None,
        })?;
        let protocol = transport(&original).find_map(|it| match it {
            ProtoTuple::Protocol(protocol) => Some(u8::from(*protocol)),
            _ => None,
        })?;
        let port = transport(&original).find_map(|it| match it {
            ProtoTuple::DestinationPort(port) => Some(*port),
            _ => None,
        });
        Some(Flow {
            protocol,
            destination,
            port: port.unwrap_or_default(),
            answering,
            is_translated,
            original,
        })
    }
}

fn addresses(tuple: &[Tuple]) -> impl Iterator<Item = &IPTuple> {
    let parts = tuple.iter().map(|part| match part {
        Tuple::Ip(addresses) => &addresses[..],
        _ => &[],
    });
    parts.flatten()
}

fn transport(tuple: &[Tuple]) -> impl Iterator<Item = &ProtoTuple> {
    let parts = tuple.iter().map(|part| match part {
        Tuple::Proto(fields) => &fields[..],
        _ => &[],
    });
    parts.flatten()
}
