//! Queueing disciplines and classes (tc(8)): token buckets, HTB, fq_codel.

use netlink_packet_core::{Nla, NlasIterator};
use netlink_packet_route::tc::{TcAttribute, TcOption};
use nix::errno::Errno;
use nix::libc::{RTM_NEWQDISC, RTM_NEWTCLASS};

use super::connection::Netlink;
use super::error::{NetlinkError, not_found_as_none};
use super::tc::{
    ClassMessage, Handle, QdiscMessage, Tc, TcChange, nested, rate_specification, tc_message,
    tc_object, words,
};

/// TCA_TBF_PARMS, TCA_HTB_PARMS.
const PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_HTB_INIT: u16 = 2;
const TCA_HTB_DIRECT_QLEN: u16 = 5;
const TCA_HTB_RATE64: u16 = 6;
const TCA_HTB_CEIL64: u16 = 7;
const TCA_FQ_CODEL_FLOWS: u16 = 5;

/// Nanoseconds per tick, the unit of buffers (PSCHED_SHIFT, net/pkt_sched.h).
const TICK: u64 = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    pub kind: String,
    pub handle: Handle,
    /// Of a `tbf`.
    pub bucket: Option<TokenBucket>,
}

/// The parameters of a token bucket filter (tc-tbf(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// In bytes per second.
    pub rate: u64,
    /// The length of the queue and of the bucket, in bytes.
    pub limit: u32,
    /// The time in which the bucket is filled, in ticks of 64 ns.
    pub buffer: u32,
}

/// A class of the hierarchical token bucket (tc-htb(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HtbClass {
    /// The guaranteed rate in bytes per second.
    pub rate: u64,
    /// The highest rate in bytes per second.
    pub ceil: u64,
    /// In bytes.
    pub burst: u32,
    /// The burst at the highest rate, in bytes.
    pub ceil_burst: u32,
    /// Bytes per turn of classes that share a rate.
    pub quantum: u32,
}

/// A kind of qdisc to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewQdisc {
    TokenBucket(TokenBucket),
    /// Queues up to `limit` bytes, and splits GSO packets of more than `size` bytes.
    Segments {
        size: u32,
        limit: u32,
    },
    Htb {
        /// The minor number of the class of packets that no filter classifies.
        default_class: u16,
    },
    FqCodel {
        flows: u32,
    },
    Ingress,
}

/// The time to send a number of bytes, in ticks.
pub fn ticks(bytes: u64, rate: u64) -> u32 {
    let ticks = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1) * TICK);
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

impl TokenBucket {
    fn options(self) -> Vec<u8> {
        let mut options = vec![(PARMS, self.parms())];
        if u32::try_from(self.rate).is_err() {
            options.push((TCA_TBF_RATE64, self.rate.to_ne_bytes().to_vec()));
        }
        nested(&options)
    }

    /// `struct tc_tbf_qopt`.
    fn parms(self) -> Vec<u8> {
        let no_peak = [0; 12];
        let rest = words(&[self.limit, self.buffer, 0]);
        [&rate_specification(self.rate)[..], &no_peak, &rest].concat()
    }

    fn decode(options: &[u8]) -> Option<TokenBucket> {
        let parms = attribute(options, PARMS)?;
        let word = |at: usize| Some(u32::from_ne_bytes(parms.get(at..at + 4)?.try_into().ok()?));
        Some(TokenBucket {
            rate: rate64(options, TCA_TBF_RATE64).unwrap_or(word(8)?.into()),
            limit: word(24)?,
            buffer: word(28)?,
        })
    }
}

impl HtbClass {
    fn options(self) -> Vec<u8> {
        let HtbClass { rate, ceil, .. } = self;
        let rest = words(&[
            ticks(self.burst.into(), rate),
            ticks(self.ceil_burst.into(), ceil),
            self.quantum,
            0,
            0,
        ]);
        let parms = [
            &rate_specification(rate)[..],
            &rate_specification(ceil),
            &rest,
        ];
        nested(&[
            (PARMS, parms.concat()),
            (TCA_HTB_RATE64, rate.to_ne_bytes().to_vec()),
            (TCA_HTB_CEIL64, ceil.to_ne_bytes().to_vec()),
        ])
    }
}

impl NewQdisc {
    fn kind(self) -> &'static str {
        match self {
            NewQdisc::TokenBucket(_) | NewQdisc::Segments { .. } => "tbf",
            NewQdisc::Htb { .. } => "htb",
            NewQdisc::FqCodel { .. } => "fq_codel",
            NewQdisc::Ingress => "ingress",
        }
    }

    fn options(self) -> Vec<u8> {
        match self {
            NewQdisc::TokenBucket(bucket) => bucket.options(),
            NewQdisc::Segments { size, limit } => {
                // So high that a packet never waits.
                let bucket = TokenBucket {
                    rate: 1 << 40,
                    limit,
                    buffer: 0,
                };
                nested(&[
                    (PARMS, bucket.parms()),
                    (TCA_TBF_RATE64, bucket.rate.to_ne_bytes().to_vec()),
                    (TCA_TBF_BURST, words(&[size])),
                ])
            }
            NewQdisc::Htb { default_class } => {
                // `struct tc_htb_glob`: version 3, rate2quantum, default class.
                let init = words(&[3, 10, default_class.into(), 0, 0]);
                nested(&[(TCA_HTB_INIT, init), (TCA_HTB_DIRECT_QLEN, words(&[1000]))])
            }
            NewQdisc::FqCodel { flows } => nested(&[(TCA_FQ_CODEL_FLOWS, words(&[flows]))]),
            NewQdisc::Ingress => Vec::new(),
        }
    }
}

impl TcChange {
    pub fn add_qdisc(link: u32, parent: Handle, handle: Handle, qdisc: NewQdisc) -> TcChange {
        let message = tc_message(link, parent, handle);
        let message = tc_object(message, qdisc.kind(), qdisc.options());
        TcChange::create(RTM_NEWQDISC, message)
    }

    pub fn add_class(link: u32, parent: Handle, handle: Handle, class: HtbClass) -> TcChange {
        let message = tc_message(link, parent, handle);
        TcChange::create(RTM_NEWTCLASS, tc_object(message, "htb", class.options()))
    }
}

impl Netlink {
    /// The root qdisc of a link.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn root_qdisc(&self, link: u32) -> Result<Option<Qdisc>, NetlinkError> {
        self.qdisc(link, Handle::ROOT)
    }

    /// The `ingress` or `clsact` qdisc of a link.
    ///
    /// # Errors
    /// As [`Netlink::root_qdisc`].
    pub fn ingress_qdisc(&self, link: u32) -> Result<Option<Qdisc>, NetlinkError> {
        self.qdisc(link, Handle::INGRESS)
    }

    fn qdisc(&self, link: u32, parent: Handle) -> Result<Option<Qdisc>, NetlinkError> {
        let request: QdiscMessage = Tc(tc_message(link, parent, Handle(0)));
        // Built-in qdiscs are not answered (`tc_qdisc_dump_ignore`, net/sched/sch_api.c); of a deleted `ingress`, a
        // built-in one remains.
        let answer = match self.fetch_if_visible(&request) {
            Err(NetlinkError::Refused(Errno::EINVAL)) => None,
            answer => not_found_as_none(answer)?.flatten(),
        };
        Ok(answer.map(Qdisc::from))
    }

    /// The guaranteed rate of an HTB class, in bytes per second.
    ///
    /// # Errors
    /// As [`Netlink::root_qdisc`].
    pub fn htb_rate(&self, link: u32, class: Handle) -> Result<Option<u64>, NetlinkError> {
        let request: ClassMessage = Tc(tc_message(link, Handle(0), class));
        let answer = not_found_as_none(self.fetch_if_visible(&request))?;
        Ok(answer.flatten().and_then(|it| {
            let options = raw_options(&it.0.attributes)?;
            let parms = attribute(&options, PARMS)?;
            let rate = u32::from_ne_bytes(parms.get(8..12)?.try_into().ok()?);
            Some(rate64(&options, TCA_HTB_RATE64).unwrap_or(rate.into()))
        }))
    }
}

impl From<QdiscMessage> for Qdisc {
    fn from(Tc(message): QdiscMessage) -> Qdisc {
        let mut qdisc = Qdisc {
            kind: String::new(),
            handle: Handle(message.header.handle.into()),
            bucket: None,
        };
        if let Some(TcAttribute::Kind(kind)) = message.attributes.first() {
            qdisc.kind.clone_from(kind);
        }
        if qdisc.kind == "tbf" {
            qdisc.bucket =
                raw_options(&message.attributes).and_then(|options| TokenBucket::decode(&options));
        }
        qdisc
    }
}

/// TCA_OPTIONS of a kind that `netlink-packet-route` does not decode.
fn raw_options(attributes: &[TcAttribute]) -> Option<Vec<u8>> {
    attributes.iter().find_map(|it| match it {
        TcAttribute::Options(options) => match options.first()? {
            TcOption::Other(raw) => {
                let mut value = vec![0; raw.value_len()];
                raw.emit_value(&mut value);
                Some(value)
            }
            _ => None,
        },
        _ => None,
    })
}

fn attribute(bytes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut all = NlasIterator::new(bytes).map_while(Result::ok);
    all.find(|nla| nla.kind() == kind)
        .map(|nla| nla.value().to_vec())
}

fn rate64(options: &[u8], kind: u16) -> Option<u64> {
    Some(u64::from_ne_bytes(
        attribute(options, kind)?.try_into().ok()?,
    ))
}
