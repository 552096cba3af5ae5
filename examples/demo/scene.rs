//! The scene: a node with a network card, and a machine beyond it at the other end of the cable.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use gangplank::kernel::netlink::{Detection, Netlink, NewVeth};
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

/// The name of the network card of both.
pub const CARD: &str = "eth0";

/// How long the plugins' installation and the cable may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A node, and a machine beyond it that knows no way to pods.
pub struct Scene {
    pub node: Namespace,
    pub world: Namespace,
}

impl Scene {
    /// Both machines, and the cable between them.
    pub fn new() -> Result<Scene, Failure> {
        let made = Namespace::host("node").and_then(|node| {
            let world = node.pod("world")?;
            Ok(Scene { node, world })
        });
        let scene = made.map_err(|cause| forbidden("make network and mount namespaces", cause))?;
        let path = scene.world.netns_path();
        scene
            .node
            .inside(|| join(&path))
            .map_err(|cause| format!("the node's cable: {cause}"))?;
        let raised = scene.world.inside(|| raise(WORLD));
        raised.map_err(|cause| format!("the world's cable: {cause}"))?;
        Ok(scene)
    }

    /// The node's address on the cable.
    pub fn node_address() -> IpAddr {
        cidr(NODE).address()
    }

    /// The world's address on the cable.
    pub fn world_address() -> IpAddr {
        cidr(WORLD).address()
    }

    /// Runs `gangplank install` on the node; what it says.
    pub fn install(&self, binary: &Path) -> Result<Vec<String>, Failure> {
        let named = |cause: io::Error| format!("{}: {cause}", binary.display());
        // Opened here: the node's own /run and /var/lib may hide it there.
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
        let said = String::from_utf8(output.stdout)?;
        Ok(said.lines().map(str::to_owned).collect())
    }
}

/// Lays a cable from here to the namespace at a path, and takes up this end.
fn join(path: &str) -> Result<(), Failure> {
    let cable = NewVeth {
        port: &name(CARD),
        bridge: None,
        end: &name(CARD),
        mac: random::mac()?,
        mtu: None,
    };
    let world = Netns::open(path, OwnNetns::Refused)?;
    Netlink::open()?.create_veth(&cable, Some(&world))?;
    raise(NODE)
}

/// Brings up the loopback interface and the network card of the place where this runs, with an address.
fn raise(address: &str) -> Result<(), Failure> {
    let netlink = Netlink::open()?;
    for link in ["lo", CARD] {
        let link = netlink
            .link(&name(link))?
            .ok_or_else(|| format!("there is no {link}"))?;
        netlink.set_up(link.index)?;
        if link.name == CARD {
            netlink.add_address(link.index, cidr(address), Detection::Skipped)?;
        }
    }
    Ok(())
}

fn name(text: &str) -> IfName {
    text.parse().expect("it is a name of a link")
}

fn cidr(text: &str) -> Cidr {
    text.parse().expect("it is an address")
}

/// Makes an ordinary user root of a user namespace, which may then make network namespaces. What to tell about it.
pub fn become_root() -> Result<&'static str, Failure> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return Ok("");
    }
    let enter = || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        // user_namespaces(7): without CAP_SETGID outside, setgroups(2) must be given up before groups are mapped.
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))
    };
    enter().map_err(|cause| forbidden("make a user namespace", cause))?;
    Ok(" of an ordinary user")
}

/// The kernel's refusal, with what is known to cause it.
fn forbidden(what: &str, cause: io::Error) -> Failure {
    let mut text = format!("this machine does not let this user {what}: {cause}");
    let forbidding = [
        ("kernel.unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ("user.max_user_namespaces", "0"),
        ("user.max_net_namespaces", "0"),
        ("user.max_mnt_namespaces", "0"),
    ];
    for (key, value) in forbidding {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        if fs::read_to_string(path).is_ok_and(|set| set.trim() == value) {
            text.push_str(&format!("\n      {key} is {value}"));
        }
    }
    text.push_str("\n      Run it as root; in a container, give that CAP_SYS_ADMIN and CAP_NET_ADMIN (--privileged).");
    text.into()
}
