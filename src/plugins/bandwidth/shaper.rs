//! The queueing disciplines that limit what a link sends: a token bucket as of the Go plugin, or the low-latency shaper.
//!
//! The low-latency shaper is an HTB class with the rate, whose bucket holds at most 10 ms of it, above 33 leaf classes, into
//! which packets are sorted by flow. Each leaf has a guaranteed 33rd of the rate: the packets of a flow that needs no more
//! pass at once, whatever the others send, because HTB serves classes within their guarantee first (`htb_dequeue`,
//! net/sched/sch_htb.c). Leaves split GSO packets that take longer than 1 ms. If the kernel has `fq_codel`, it manages the
//! queue of each leaf, otherwise that is a FIFO of 64 KiB or 25 ms.

use crate::error::Error;
use crate::kernel::log;
use crate::kernel::netlink::{
    Handle, HtbClass, Link, Netlink, NetlinkError, NewQdisc, Qdisc, TcChange, TokenBucket, ticks,
};
use crate::link::Context;
use crate::plugins::bandwidth::config::Limit;

/// The root qdisc of the Go plugin.
const TOKEN_BUCKET: Handle = Handle::new(1, 0);

/// The root qdisc of the low-latency shaper, and its class with the rate. The unusual number identifies it.
const HTB: Handle = class_handle(0);
const TOTAL: Handle = class_handle(1);

/// The minor number of the first leaf class.
const FIRST_LEAF: u16 = 0x10;

/// The leaf classes of TCP and UDP flows, a power of two. Other packets have the first leaf class for themselves.
const FLOW_LEAVES: u16 = 32;
const LEAVES: u16 = FLOW_LEAVES + 1;

/// Ethernet header and VLAN tag.
const FRAME_HEADER: u32 = 18;

/// The largest packet without BIG TCP, with headers.
const LARGEST_PACKET: u32 = 65_536 + 256;

const fn class_handle(minor: u16) -> Handle {
    Handle::new(0x6c6c, minor)
}

/// What limits the rate of a link.
#[derive(Clone, Copy, Debug)]
pub struct Shaper {
    pub limit: Limit,
    pub low_latency: bool,
}

impl Shaper {
    /// # Errors
    /// If the kernel refuses a qdisc, also because the link has another root qdisc.
    pub fn install(&self, host: &Netlink, link: &Link) -> Result<(), Error> {
        if self.low_latency {
            return self.install_low_latency(host, link);
        }
        let bucket = self.limit.token_bucket(link.mtu, saturate);
        let bucket = NewQdisc::TokenBucket(bucket);
        let root = TcChange::add_qdisc(link.index, Handle::ROOT, TOKEN_BUCKET, bucket);
        change(host, &[root]).map_err(|cause| refused(link, cause))
    }

    fn install_low_latency(&self, host: &Netlink, link: &Link) -> Result<(), Error> {
        let tree = Tree::new(self.limit, link.mtu);
        change(host, &tree.root(link.index)).map_err(|cause| refused(link, cause))?;
        let first = class_handle(FIRST_LEAF + 1);
        let hash = TcChange::classify_flows(link.index, HTB, first, FLOW_LEAVES.into());
        let outcomes = host
            .change_all(&[hash, tree.fair_queue(link.index, 0)])
            .context("add a filter and a qdisc to", &link.name)?;
        let [hash, fair_queue] = outcomes[..] else {
            return Err(refused(link, NetlinkError::Unreadable));
        };
        // Without CONFIG_NET_CLS_BPF, all packets are in the first leaf.
        if let Err(cause) = hash {
            log::warn(&format!(
                "bandwidth: {}: flows share one queue: {cause}",
                link.name
            ));
        }
        let mut leaves = Vec::new();
        for leaf in 1..LEAVES {
            leaves.extend(tree.leaf(link.index, leaf));
            // CONFIG_NET_SCH_FQ_CODEL
            if fair_queue.is_ok() {
                leaves.push(tree.fair_queue(link.index, leaf));
            }
        }
        change(host, &leaves).map_err(|cause| refused(link, cause))
    }

    /// # Errors
    /// If the link has another qdisc, or one with other parameters.
    pub fn check(&self, host: &Netlink, link: &Link) -> Result<(), Error> {
        let root = root(host, link)?;
        let found = match &root {
            Some(root) => format!("{} {:x}:", root.kind, root.handle.0 >> 16),
            None => "none".to_owned(),
        };
        let differs = |wanted: String| {
            let what = format!("bandwidth: the root qdisc of {} is {found}", link.name);
            Err(Error::failed(format!("{what}, expected {wanted}"))
                .details("run DEL, then ADD again"))
        };
        if self.low_latency {
            let rate = host.htb_rate(link.index, TOTAL);
            let rate = rate.context("look up a class of", &link.name)?;
            let is_own = root.is_some_and(|it| it.is_low_latency());
            return match is_own && rate == Some(self.limit.rate) {
                true => Ok(()),
                false => differs(format!("htb 6c6c: with {} bytes/s", self.limit.rate)),
            };
        }
        // Those of an ADD of the Go plugin are valid too.
        let wanted = [saturate, wrap].map(|narrow| self.limit.token_bucket(link.mtu, narrow));
        let go = self.limit.token_bucket(0, wrap);
        match root.and_then(|root| root.bucket) {
            Some(bucket) if wanted.contains(&bucket) || bucket == go => Ok(()),
            Some(bucket) => differs(format!("{:?} instead of {bucket:?}", wanted[0])),
            None => differs("tbf 1:".to_owned()),
        }
    }
}

/// Removes the root qdisc of a link if it is one of [`Shaper::install`] or of the Go plugin.
///
/// # Errors
/// If the kernel refuses it.
pub fn remove(host: &Netlink, link: &Link) -> Result<(), Error> {
    match root(host, link)? {
        Some(root)
            if root.is_low_latency() || root.kind == "tbf" && root.handle == TOKEN_BUCKET =>
        {
            let delete = TcChange::delete_qdisc(link.index, Handle::ROOT);
            change(host, &[delete]).context("delete the root qdisc of", &link.name)
        }
        _ => Ok(()),
    }
}

/// Executes changes; the first error.
pub fn change(host: &Netlink, changes: &[TcChange]) -> Result<(), NetlinkError> {
    host.change_all(changes)?.into_iter().collect()
}

fn root(host: &Netlink, link: &Link) -> Result<Option<Qdisc>, Error> {
    host.root_qdisc(link.index)
        .context("look up the root qdisc of", &link.name)
}

fn refused(link: &Link, cause: NetlinkError) -> Error {
    let error = crate::link::failed("add a root qdisc to", &link.name, cause);
    match cause {
        NetlinkError::Exists => error.details(format!(
            "it has one that is not of this plugin; remove it with \"tc qdisc del dev {} root\"",
            link.name
        )),
        _ => error,
    }
}

impl Qdisc {
    fn is_low_latency(&self) -> bool {
        self.kind == "htb" && self.handle == HTB
    }
}

fn saturate(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The Go plugin's conversion.
fn wrap(number: u64) -> u32 {
    number as u32
}

impl Limit {
    /// The token bucket of the Go plugin. `narrow` converts numbers to 32 bits. The bucket holds at least one frame,
    /// because larger packets are dropped.
    fn token_bucket(self, mtu: u32, narrow: fn(u64) -> u32) -> TokenBucket {
        let Limit { rate, burst } = self;
        let microseconds = u64::from(burst) * 1_000_000 / rate;
        let in_25_ms = narrow(rate / 40);
        // 64 ns per tick: 15.625 ticks per microsecond.
        let buffer = narrow(u64::from(narrow(microseconds)) * 125 / 8);
        let limit = narrow(u64::from(in_25_ms) + u64::from(burst));
        let frame = if mtu == 0 { 0 } else { mtu + FRAME_HEADER };
        let holds_frame = ticks(frame.into(), rate);
        let raised = if buffer < holds_frame {
            holds_frame.saturating_add(1)
        } else {
            buffer
        };
        TokenBucket {
            rate,
            limit: limit.max(frame),
            buffer: raised,
        }
    }
}

/// The classes and qdiscs of the low-latency shaper.
struct Tree {
    rate: u64,
    /// Packets longer than this are split, if possible.
    segment: u32,
    /// Of the class with the rate.
    burst: u32,
}

impl Tree {
    fn new(Limit { rate, burst }: Limit, mtu: u32) -> Tree {
        let frame = mtu + FRAME_HEADER;
        let segment = saturate(rate / 1000).clamp(frame, LARGEST_PACKET.max(frame));
        // Timers may be late by a few milliseconds, in which a smaller bucket would overflow.
        let largest = saturate(rate / 100).max(2 * segment);
        Tree {
            rate,
            segment,
            burst: burst.clamp(2 * segment, largest),
        }
    }

    fn class(&self, rate: u64, burst: u32) -> HtbClass {
        HtbClass {
            rate: rate.max(1),
            ceil: self.rate,
            burst,
            ceil_burst: self.burst,
            quantum: self.segment,
        }
    }

    fn root(&self, link: u32) -> Vec<TcChange> {
        let htb = NewQdisc::Htb {
            default_class: FIRST_LEAF,
        };
        let class = self.class(self.rate, self.burst);
        let mut changes = vec![
            TcChange::add_qdisc(link, Handle::ROOT, HTB, htb),
            TcChange::add_class(link, HTB, TOTAL, class),
        ];
        changes.extend(self.leaf(link, 0));
        changes
    }

    fn leaf(&self, link: u32, number: u16) -> [TcChange; 2] {
        let class = self.class(self.rate / u64::from(LEAVES), 2 * self.segment);
        let handle = class_handle(FIRST_LEAF + number);
        let queue = NewQdisc::Segments {
            size: self.segment,
            limit: saturate(self.rate / 40).max(LARGEST_PACKET) + self.segment,
        };
        [
            TcChange::add_class(link, TOTAL, handle, class),
            TcChange::add_qdisc(link, handle, leaf_queue(number, 0), queue),
        ]
    }

    fn fair_queue(&self, link: u32, number: u16) -> TcChange {
        let queue = NewQdisc::FqCodel {
            flows: FLOW_LEAVES.into(),
        };
        TcChange::add_qdisc(link, leaf_queue(number, 1), Handle(0), queue)
    }
}

/// The qdisc of a leaf class, or its only class.
fn leaf_queue(number: u16, minor: u16) -> Handle {
    Handle::new(0x6d00 + number, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rate and burst in bits.
    fn bucket(rate: u64, burst: u64, narrow: fn(u64) -> u32) -> (u64, u32, u32) {
        let limit = Limit {
            rate: rate / 8,
            burst: (burst / 8) as u32,
        };
        let bucket = limit.token_bucket(1500, narrow);
        (bucket.rate, bucket.limit, bucket.buffer)
    }

    #[test]
    fn token_buckets_are_those_of_the_go_plugin() {
        for (rate, burst, expected) in [
            (8_000_000, 800_000, (1_000_000, 125_000, 0x0017_d784)),
            (12_345_679, 1_234_567, (1_543_209, 192_900, 0x0017_d774)),
            (
                40_000_000_000,
                80_000_000,
                (5_000_000_000, 135_000_000, 0x7a12),
            ),
            (
                10_000_000,
                2_147_483_647,
                (1_250_000, 268_466_705, 0xc7ff_fff3),
            ),
        ] {
            assert_eq!(bucket(rate, burst, saturate), expected);
            assert_eq!(bucket(rate, burst, wrap), expected);
        }
    }

    #[test]
    fn numbers_that_wrap_in_the_go_plugin_are_the_largest() {
        let (_, _, buffer) = bucket(1_000_000, 2_147_483_647, saturate);
        assert_eq!(buffer, u32::MAX);
        let (_, _, buffer) = bucket(1_000_000, 2_147_483_647, wrap);
        assert_eq!(u64::from(buffer) * 64 / 8000, 27_917_286, "bytes");
        assert_eq!(bucket(1000, 34_359_738_352, saturate).1, u32::MAX);
    }

    #[test]
    fn a_bucket_holds_at_least_one_frame() {
        for rate in [8, 1_000_000, 40_000_000_000] {
            let (rate, limit, buffer) = bucket(rate, 8, saturate);
            // `psched_ns_t2l` (net/sched/sch_generic.c).
            let size = u128::from(buffer) * 64 * u128::from(rate) / 1_000_000_000;
            assert!(size >= 1518 || buffer == u32::MAX, "{size} bytes at {rate}");
            assert!(limit >= 1518);
        }
    }

    #[test]
    fn the_low_latency_bucket_holds_at_most_10_ms_or_two_frames() {
        let burst = |rate, burst| Tree::new(Limit { rate, burst }, 1500).burst;
        assert_eq!(burst(1_250_000, u32::MAX), 12_500);
        assert_eq!(burst(1_250_000, 5000), 5000);
        assert_eq!(burst(1_250_000, 1), 3036);
        assert_eq!(burst(125_000, u32::MAX), 3036);
    }

    #[test]
    fn packets_that_take_longer_than_1_ms_are_split() {
        let segment = |rate, mtu| Tree::new(Limit { rate, burst: 1 }, mtu).segment;
        assert_eq!(segment(1_250_000, 1500), 1518);
        assert_eq!(segment(12_500_000, 1500), 12_500);
        assert_eq!(segment(u64::MAX / 8, 1500), LARGEST_PACKET);
        assert_eq!(segment(1, 65_535), 65_553);
    }
}
