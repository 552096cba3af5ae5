//! A node, and an external host (`world`) that is connected to its uplink.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use gangplank::kernel::netlink::{Detection, Netlink, NewVeth, SubnetRoute};
use gangplank::kernel::netns::{Netns, OwnNetns};
use gangplank::kernel::process;
use gangplank::kernel::random;
use gangplank::net::{Cidr, IfName};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::Failure;
use crate::namespace::{BIN, Namespace};

/// Addresses for documentation (RFC 5737).
const NODE: &str = "203.0.113.5/24";
const WORLD: &str = "203.0.113.9/24";

/// The name of the uplink, and of the interface of pods.
pub const INTERFACE: &str = "eth0";

/// The time limit of `gangplank install`.
const LIMIT: Duration = Duration::from_secs(10);

/// A node, and an external host without a route to the pods.
pub struct Topology {
    pub node: Namespace,
    pub world: Namespace,
}

impl Topology {
    pub fn new() -> Result<Topology, Failure> {
        let created = Namespace::host("node").and_then(|node| {
            let world = node.pod("world")?;
            Ok(Topology { node, world })
        });
        let topology =
            created.map_err(|cause| forbidden("create network and mount namespaces", cause))?;
        let path = topology.world.netns_path();
        topology
            .node
            .inside(|| connect(&path))
            .map_err(|cause| format!("cannot configure the node's uplink: {cause}"))?;
        let configured = topology.world.inside(|| set_up(WORLD));
        configured.map_err(|cause| format!("cannot configure the external host: {cause}"))?;
        Ok(topology)
    }

    pub fn node_address() -> IpAddr {
        cidr(NODE).address()
    }

    pub fn world_address() -> IpAddr {
        cidr(WORLD).address()
    }

    /// Runs `gangplank install` on the node. Returns the lines that it prints.
    pub fn install(&self, binary: &Path) -> Result<Vec<String>, Failure> {
        let named = |cause: io::Error| format!("{}: {cause}", binary.display());
        // Opened outside of the node, whose /run and /var/lib hide those of the machine.
        let mut file = File::open(binary).map_err(named)?;
        let installer = Path::new("/run/gangplank");
        let output = self.node.inside(|| {
            let mut copy = File::create(installer)?;
            io::copy(&mut file, &mut copy)?;
            fs::set_permissions(installer, Permissions::from_mode(0o755))?;
            drop(copy);
            process::run(installer, &["install", BIN], &[], b"", LIMIT).map_err(io::Error::other)
        });
        let output = output.map_err(named)?;
        if !output.status.success() {
            return Err(format!("gangplank install: {}", output.stderr_summary()).into());
        }
        let printed = String::from_utf8(output.stdout)?;
        Ok(printed.lines().map(str::to_owned).collect())
    }
}

/// Creates a veth pair between this namespace and the one at `path`, and configures the end in this one.
fn connect(path: &str) -> Result<(), Failure> {
    let veth = NewVeth {
        port: &name(INTERFACE),
        bridge: None,
        end: &name(INTERFACE),
        mac: random::mac()?,
        mtu: None,
    };
    let world = Netns::open(path, OwnNetns::Refused)?;
    Netlink::open()?.create_veth(&veth, Some(&world))?;
    set_up(NODE)
}

/// Sets up the loopback interface and the uplink of the current namespace, and adds an address to the uplink.
fn set_up(address: &str) -> Result<(), Failure> {
    let netlink = Netlink::open()?;
    for link in ["lo", INTERFACE] {
        let link = netlink
            .link(&name(link))?
            .ok_or_else(|| format!("{link} does not exist"))?;
        netlink.set_up(link.index)?;
        if link.name == INTERFACE {
            netlink.add_address(
                link.index,
                cidr(address),
                (Detection::Skipped, SubnetRoute::Added),
            )?;
        }
    }
    Ok(())
}

fn name(text: &str) -> IfName {
    text.parse().expect("a valid interface name")
}

fn cidr(text: &str) -> Cidr {
    text.parse().expect("a valid address")
}

/// Enters a user namespace, unless the user is root: its root user may create network namespaces. Returns an addition to
/// the text about the namespaces.
pub fn become_root() -> Result<&'static str, Failure> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return Ok("");
    }
    let enter = || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        // user_namespaces(7): without CAP_SETGID, setgroups(2) must be disabled before groups are mapped.
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))
    };
    enter().map_err(|cause| forbidden("create a user namespace", cause))?;
    Ok(" of an ordinary user")
}

/// The error of an operation that the kernel denied, with the sysctls that cause it.
fn forbidden(what: &str, cause: io::Error) -> Failure {
    let mut text = format!("this machine does not let this user {what}: {cause}");
    let restrictions = [
        ("kernel.unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ("user.max_user_namespaces", "0"),
        ("user.max_net_namespaces", "0"),
        ("user.max_mnt_namespaces", "0"),
    ];
    for (key, value) in restrictions {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        if fs::read_to_string(path).is_ok_and(|set| set.trim() == value) {
            text.push_str(&format!("\n      {key} is {value}"));
        }
    }
    text.push_str("\n      Run the demo as root. A container needs CAP_SYS_ADMIN and CAP_NET_ADMIN (--privileged).");
    text.into()
}
