//! The namespaces of nodes and pods: running closures in them, and packets between them.
//! Requires no programs: `examples/demo` uses it too.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// The plugin directory of a node.
pub const BIN: &str = "/run/cni/bin";

/// The time limit for a packet.
const PATIENCE: Duration = Duration::from_secs(2);

const NONE: Option<&str> = None;

/// A network namespace together with the mount namespace of its host. Several threads may run in it at the same time.
/// The kernel deletes it when the last clone is dropped.
#[derive(Clone)]
pub struct Namespace {
    pub name: String,
    pub(super) netns: Arc<File>,
    pub(super) mntns: Arc<File>,
}

/// A packet and its answer.
pub struct Exchange {
    /// The source address of the packet at the receiver.
    pub seen_as: IpAddr,
    /// Time until the answer arrived.
    pub took: Duration,
}

/// Runs `work` on a new thread, so that changes of its namespaces do not affect the caller.
pub fn on_own_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let outcome = std::thread::scope(|scope| scope.spawn(work).join());
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

impl Namespace {
    /// A host: network and mount namespaces of its own, with empty /run and /var/lib, and a loopback interface that is
    /// down.
    pub fn host(name: &str) -> io::Result<Namespace> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
            for dir in ["/run", "/var/lib"] {
                let tmpfs = Some("tmpfs");
                mount(tmpfs, dir, tmpfs, MsFlags::empty(), Some("mode=0755"))?;
            }
            for dir in ["/run/netns", "/run/lock", BIN, "/var/lib/cni"] {
                fs::create_dir_all(dir)?;
            }
            Ok(Namespace {
                name: name.to_owned(),
                netns: Arc::new(File::open("/proc/thread-self/ns/net")?),
                mntns: Arc::new(File::open("/proc/thread-self/ns/mnt")?),
            })
        })
    }

    /// A pod on this host: a network namespace at [`Namespace::netns_path`], as `ip netns add` makes it.
    pub fn pod(&self, name: &str) -> io::Result<Namespace> {
        let netns = self.inside(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let path = netns_path(name);
            File::create_new(&path)?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), path.as_str(), NONE, MsFlags::MS_BIND, NONE)?;
            File::open(own)
        })?;
        Ok(Namespace {
            name: name.to_owned(),
            netns: Arc::new(netns),
            mntns: self.mntns.clone(),
        })
    }

    /// The path of a pod's namespace on the host.
    pub fn netns_path(&self) -> String {
        netns_path(&self.name)
    }

    /// Runs a closure in this namespace.
    pub fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        on_own_thread(|| {
            // setns(2) with CLONE_NEWNS requires that the thread does not share its filesystem attributes.
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&*self.mntns, CloneFlags::CLONE_NEWNS).unwrap();
            setns(&*self.netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// A UDP socket in this namespace, with an ephemeral port.
    pub fn socket(&self, address: IpAddr) -> io::Result<UdpSocket> {
        let socket = self.inside(|| UdpSocket::bind((address, 0)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// Sends a packet to `to`, an address in the namespace `peer`, and receives an answer.
    pub fn exchange(&self, peer: &Namespace, to: IpAddr) -> io::Result<Exchange> {
        let any: IpAddr = match to {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let (sender, receiver) = (self.socket(any)?, peer.socket(to)?);
        let mut buffer = [0; 16];
        let start = Instant::now();
        // A connected socket receives answers only from this peer.
        sender.connect(receiver.local_addr()?)?;
        sender.send(b"who am I?")?;
        let (_, from) = receiver.recv_from(&mut buffer)?;
        receiver.send_to(b"you are", from)?;
        sender.recv(&mut buffer)?;
        Ok(Exchange {
            seen_as: from.ip(),
            took: start.elapsed(),
        })
    }

    /// The leased addresses of a network on this host, sorted.
    pub fn leases(&self, network: &str) -> Vec<IpAddr> {
        let dir = Path::new("/var/lib/cni/networks").join(network);
        let mut leases: Vec<IpAddr> = self.inside(|| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let address = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
            entries.filter_map(address).collect()
        });
        leases.sort();
        leases
    }
}

fn netns_path(name: &str) -> String {
    format!("/run/netns/{name}")
}
