//! `gangplank conf`: a network configuration for a subnet, or for a Kubernetes Node object.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::chain::{Chain, Unfit};
use crate::cli::routes;
use crate::cli::{Answer, args};
use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::result::pretty;
use crate::error::{Code, Error};
use crate::ipam::HostLocal;
use crate::kernel::netlink::{Netlink, RouteQuery};
use crate::kernel::random;
use crate::link::namespace::host_netlink;
use crate::net::{Cidr, Family};
use crate::plugins::bridge::config::BridgeConfig;
use crate::plugins::bridge::plan::MIN_MTU_IPV6;

/// A list of plugins (CNI spec 1.1, section 1).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    cni_version: &'a str,
    name: &'a str,
    plugins: Vec<Plugin<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Plugin<'a> {
    Bridge(Bridge<'a>),
    Portmap(Portmap),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bridge<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    bridge: &'a str,
    is_gateway: bool,
    ip_masq: bool,
    #[serde(
        rename = "nonMasqueradeCIDRs",
        skip_serializing_if = "<[Cidr]>::is_empty"
    )]
    non_masquerade: &'a [Cidr],
    hairpin_mode: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    ipam: HostLocalConf,
}

#[derive(Serialize)]
struct HostLocalConf {
    #[serde(rename = "type")]
    kind: &'static str,
    ranges: Vec<[Subnet; 1]>,
    routes: Vec<Destination>,
}

#[derive(Serialize)]
struct Subnet {
    subnet: Cidr,
}

#[derive(Serialize)]
struct Destination {
    dst: Cidr,
}

#[derive(Serialize)]
struct Portmap {
    #[serde(rename = "type")]
    kind: &'static str,
    capabilities: PortMappings,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PortMappings {
    port_mappings: bool,
}

/// Works the configuration out, and prints it or writes it.
///
/// # Errors
/// What the plugin would refuse too; a subnet that overlaps a route of this machine; a Node without ranges. Nothing is
/// written then.
pub fn conf(
    asked: &args::Conf,
    stdin: impl FnOnce() -> Result<String, Error>,
) -> Result<Answer, Error> {
    let subnets = match asked.subnets.is_empty() {
        true => of_node(&stdin()?)?,
        false => asked.subnets.clone(),
    };
    refuse_unfit(&subnets)?;
    let host = host_netlink()?;
    refuse_overlap(&host, &subnets, &asked.bridge)?;
    let mtu = match asked.mtu {
        Some(mtu) => Some(mtu),
        None => uplink_mtu(&host, asked.overhead)?,
    };
    let has_v6 = subnets.iter().any(|it| it.family() == Family::V6);
    if let Some(mtu) = mtu.filter(|mtu| has_v6 && *mtu < MIN_MTU_IPV6) {
        let wanted = format!("IPv6 needs at least {MIN_MTU_IPV6}");
        return Err(Error::config("mtu", mtu, wanted));
    }
    let document = pretty(&list(asked, subnets, mtu)) + "\n";
    validate(&document)?;
    let warnings = warnings(&document, &asked.cni_path)?;
    let text = match &asked.output {
        None => document,
        Some(file) => {
            write(file, &document)?;
            format!("{}: written\n", file.display())
        }
    };
    Ok(Answer {
        warnings,
        ..Answer::done(text)
    })
}

/// What the plugins of the list lack for it, as far as they are installed.
fn warnings(document: &str, cni_path: &str) -> Result<Vec<String>, Error> {
    let root = parse(document)?;
    let plugins = root["plugins"].as_array().into_iter().flatten();
    let plugins: Vec<_> = plugins.filter_map(|it| it.as_object().cloned()).collect();
    let root = root.as_object().cloned().unwrap_or_default();
    let unfit = Chain::new(&root, &plugins).unfit(cni_path);
    let warning = |unfit: Unfit| {
        let answers = unfit.answers.join("; ");
        format!("{} ({answers}); {}", unfit.cause, unfit.remedy)
    };
    Ok(unfit.into_iter().map(warning).collect())
}

fn parse(document: &str) -> Result<serde_json::Value, Error> {
    serde_json::from_str(document)
        .map_err(|cause| Error::failed(format!("internal error: {cause}")))
}

/// Refuses what is no subnet, and two of one family.
fn refuse_unfit(subnets: &[Cidr]) -> Result<(), Error> {
    if let Some(inside) = subnets.iter().find(|it| it.network() != **it) {
        let subnet = inside.network();
        let what = format!("{inside} is an address in {subnet}, but a subnet is asked for");
        return Err(
            Error::new(Code::INVALID_CONFIG, what).details(format!("did you mean {subnet}?"))
        );
    }
    for family in Family::BOTH {
        let of_family: Vec<String> = subnets
            .iter()
            .filter(|it| it.family() == family)
            .map(Cidr::to_string)
            .collect();
        if of_family.len() > 1 {
            let what = format!(
                "{} are both {family}: a pod gets one address of each family",
                of_family.join(" and ")
            );
            return Err(Error::new(Code::INVALID_CONFIG, what));
        }
    }
    Ok(())
}

fn list(asked: &args::Conf, subnets: Vec<Cidr>, mtu: Option<u32>) -> List<'_> {
    let routes = subnets.iter().map(|subnet| Destination {
        dst: subnet.family().default_destination(),
    });
    let bridge = Bridge {
        kind: "bridge",
        bridge: &asked.bridge,
        is_gateway: true,
        ip_masq: !asked.no_masquerade,
        non_masquerade: &asked.non_masquerade,
        hairpin_mode: true,
        mtu,
        ipam: HostLocalConf {
            kind: "host-local",
            routes: routes.collect(),
            ranges: subnets
                .into_iter()
                .map(|subnet| [Subnet { subnet }])
                .collect(),
        },
    };
    let portmap = asked.portmap.then_some(Plugin::Portmap(Portmap {
        kind: "portmap",
        capabilities: PortMappings {
            port_mappings: true,
        },
    }));
    List {
        cni_version: &asked.cni_version,
        name: &asked.name,
        plugins: [Plugin::Bridge(bridge)]
            .into_iter()
            .chain(portmap)
            .collect(),
    }
}

/// The ranges of the one node on stdin.
fn of_node(text: &str) -> Result<Vec<Cidr>, Error> {
    let nodes = routes::parse(text)?;
    let [node] = &nodes[..] else {
        let what = format!(
            "stdin has {} nodes, but the configuration is of one",
            nodes.len()
        );
        return Err(Error::new(Code::INVALID_CONFIG, what).details("kubectl get node NAME -o json"));
    };
    if node.ranges.is_empty() {
        let what = format!("node {} has no spec.podCIDRs", node.name);
        return Err(Error::new(Code::INVALID_CONFIG, what).details(
            "kube-controller-manager gives them with --allocate-node-cidrs and --cluster-cidr; or name a subnet here",
        ));
    }
    Ok(node.ranges.clone())
}

/// Refuses a subnet to which this machine has a route already, unless that is by the bridge itself.
fn refuse_overlap(host: &Netlink, subnets: &[Cidr], bridge: &str) -> Result<(), Error> {
    let unreadable = |cause| Error::failed(format!("cannot list this machine's routes: {cause}"));
    let links = host.links().map_err(unreadable)?;
    for subnet in subnets {
        let family = subnet.family();
        let routes = host
            .routes(RouteQuery { family, link: None })
            .map_err(unreadable)?;
        for route in routes
            .iter()
            .filter(|route| !route.dst.is_default() && route.dst.overlaps(*subnet))
        {
            let link = links
                .iter()
                .find(|link| Some(link.index) == route.link)
                .map_or("?", |link| &link.name);
            if link == bridge {
                continue;
            }
            let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            let what = format!(
                "subnet {subnet} overlaps a route of this machine: {}{via} dev {link}",
                route.dst
            );
            return Err(Error::new(Code::INVALID_CONFIG, what)
                .details("pods with these addresses would not be reached; choose another subnet, or remove the route"));
        }
    }
    Ok(())
}

/// The MTU of the way to the world, less what a tunnel takes; `None` where there is no such way.
fn uplink_mtu(host: &Netlink, overhead: u32) -> Result<Option<u32>, Error> {
    let unreadable = |cause| {
        Error::failed(format!(
            "cannot look up this machine's default route: {cause}"
        ))
    };
    match host.uplink_mtu().map_err(unreadable)? {
        None => Ok(None),
        Some(mtu) => match mtu.checked_sub(overhead) {
            Some(left) if left > 0 => Ok(Some(left)),
            _ => Err(Error::config(
                "--overhead",
                overhead,
                format!("the uplink has an MTU of {mtu}"),
            )),
        },
    }
}

/// What is printed must be what the plugin takes.
fn validate(document: &str) -> Result<(), Error> {
    let mut list = parse(document)?;
    let (name, version) = (list["name"].take(), list["cniVersion"].take());
    let mut plugin = list["plugins"][0].take();
    plugin["name"] = name;
    plugin["cniVersion"] = version;
    let conf = NetConf::parse(plugin.to_string().into_bytes())?;
    BridgeConfig::parse(&conf, &Args::default())?;
    HostLocal::parse(&conf, &Args::default()).map(drop)
}

/// How many names are tried for a file that is written aside.
const ATTEMPTS: u32 = 8;

/// Writes a file aside and renames it, so that a runtime sees all of it or nothing.
fn write(file: &Path, content: &str) -> Result<(), Error> {
    let failed = |cause| Error::failed(format!("cannot write {}: {cause}", file.display()));
    let (aside, mut to) = create_aside(file).map_err(failed)?;
    let written = to
        .write_all(content.as_bytes())
        // Whatever the umask is: runtimes need not run as the user who writes it.
        .and_then(|()| to.set_permissions(Permissions::from_mode(0o644)))
        .and_then(|()| to.sync_all())
        .and_then(|()| fs::rename(&aside, file));
    written.map_err(|cause| {
        let _ = fs::remove_file(&aside);
        failed(cause)
    })
}

/// Creates a file beside another one, under a name that nobody can foresee. A name that is there already, a link
/// included, is not opened (open(2), O_EXCL). Runtimes do not read it: it begins with a dot and has another suffix.
fn create_aside(file: &Path) -> io::Result<(PathBuf, File)> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    for _ in 1..ATTEMPTS {
        let aside = file.with_file_name(format!(".{name}.{:016x}.new", random::number()?));
        match File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)
        {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return Ok((aside, opened?)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
