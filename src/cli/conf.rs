//! `gangplank conf`: a network configuration for a subnet, or for a Kubernetes Node object.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::args::ConfArgs;
use crate::cli::doctor::finding::Finding;
use crate::cli::plugin_list::{ListedPlugin, PluginList};
use crate::cli::routes;
use crate::cli::{Answer, unreadable};
use crate::cni::result::{RouteKeys, pretty};
use crate::error::{Code, Error};
use crate::ipam::config::{HostLocalKeys, IpamKeys};
use crate::ipam::range::RangeKeys;
use crate::kernel::netlink::{Netlink, RouteQuery};
use crate::kernel::random;
use crate::link::namespace::host_netlink;
use crate::link::plan::MIN_MTU_IPV6;
use crate::net::{Cidr, Family};
use crate::netfilter::masquerade::MasqueradeKeys;
use crate::plugins::attachment::mtu::Mtu;
use crate::plugins::bridge::config::BridgeKeys;

/// A list of plugins (CNI spec 1.1, section 1).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListConf<'a> {
    cni_version: &'a str,
    name: &'a str,
    plugins: Vec<PluginConf>,
}

/// The structs are those from which the plugins read their keys.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum PluginConf {
    Bridge(Box<BridgeConf>),
    Portmap { capabilities: Value },
}

#[derive(Serialize)]
struct BridgeConf {
    #[serde(flatten)]
    bridge: BridgeKeys,
    #[serde(flatten)]
    masquerade: MasqueradeKeys,
    #[serde(flatten)]
    host_local: HostLocalKeys,
}

/// Prints the configuration, or writes it to a file.
///
/// # Errors
/// If the plugin would reject the configuration, a subnet overlaps a route of this machine, or a Node has no ranges.
/// Nothing is written then.
pub fn conf(
    args: &ConfArgs,
    stdin: impl FnOnce() -> Result<String, Error>,
) -> Result<Answer, Error> {
    let subnets = match args.subnets.is_empty() {
        true => subnets_of_node(&stdin()?)?,
        false => args.subnets.clone(),
    };
    check_subnets(&subnets)?;
    let host = host_netlink()?;
    check_overlap(&host, &subnets, args.bridge.as_str())?;
    let mtu = match args.mtu {
        Some(mtu) => Some(mtu),
        None => uplink_mtu(&host, args.overhead)?,
    };
    let has_v6 = subnets.iter().any(|it| it.family() == Family::V6);
    if let Some(mtu) = mtu.filter(|mtu| has_v6 && *mtu < MIN_MTU_IPV6) {
        let wanted = format!("IPv6 needs at least {MIN_MTU_IPV6}");
        return Err(Error::config("mtu", mtu, wanted));
    }
    let document = pretty(&list_conf(args, &subnets, mtu)) + "\n";
    let list =
        PluginList::parse(document.as_bytes()).map_err(|error| error.context("configuration"))?;
    list.plugins.iter().try_for_each(ListedPlugin::validate)?;
    let warning = |it: Finding| format!("{} ({}); {}", it.cause, it.evidence.join("; "), it.remedy);
    let warnings = list.unsupported(&args.cni_path).into_iter().map(warning);
    let warnings = warnings.collect();
    let stdout = match &args.output {
        None => document,
        Some(file) => {
            write(file, &document)?;
            format!("{}: written\n", file.display())
        }
    };
    Ok(Answer {
        warnings,
        ..Answer::text(stdout)
    })
}

/// Rejects an address inside a subnet, and two subnets of one family.
fn check_subnets(subnets: &[Cidr]) -> Result<(), Error> {
    if let Some(inside) = subnets.iter().find(|it| !it.is_network()) {
        let subnet = inside.network();
        let what = format!("{inside} is an address in {subnet}, not a subnet");
        return Err(
            Error::new(Code::INVALID_CONFIG, what).details(format!("did you mean {subnet}?"))
        );
    }
    for (at, subnet) in subnets.iter().enumerate() {
        let family = subnet.family();
        let mut others = subnets[..at].iter();
        if let Some(other) = others.find(|it| it.family() == family) {
            let what = format!(
                "{other} and {subnet} are both {family}: a pod gets one address of each family"
            );
            return Err(Error::new(Code::INVALID_CONFIG, what));
        }
    }
    Ok(())
}

fn list_conf<'a>(args: &'a ConfArgs, subnets: &[Cidr], mtu: Option<u32>) -> ListConf<'a> {
    let range = |subnet: &Cidr| RangeKeys {
        subnet: Some(subnet.to_string()),
        ..RangeKeys::default()
    };
    let default_route = |subnet: &Cidr| RouteKeys {
        dst: Some(subnet.family().default_destination()),
        ..RouteKeys::default()
    };
    let ipam = IpamKeys {
        r#type: "host-local".to_owned(),
        ranges: subnets.iter().map(|subnet| vec![range(subnet)]).collect(),
        routes: subnets.iter().map(default_route).collect(),
        ..IpamKeys::default()
    };
    let bridge = BridgeConf {
        bridge: BridgeKeys {
            bridge: Some(args.bridge.clone()),
            is_gateway: true,
            mtu: mtu.map_or(Mtu::Kernel, Mtu::Bytes),
            hairpin_mode: true,
            ..BridgeKeys::default()
        },
        masquerade: MasqueradeKeys {
            ip_masq: !args.no_masquerade,
            non_masquerade_cidrs: args.non_masquerade.clone(),
            ..MasqueradeKeys::default()
        },
        host_local: HostLocalKeys {
            ipam,
            ..HostLocalKeys::default()
        },
    };
    let mut plugins = vec![PluginConf::Bridge(Box::new(bridge))];
    if args.portmap {
        plugins.push(PluginConf::Portmap {
            capabilities: json!({ "portMappings": true }),
        });
    }
    ListConf {
        cni_version: &args.cni_version,
        name: &args.name,
        plugins,
    }
}

/// The pod ranges of the node on stdin.
fn subnets_of_node(text: &str) -> Result<Vec<Cidr>, Error> {
    let nodes = routes::parse(text)?;
    let [node] = &nodes[..] else {
        let what = format!(
            "stdin has {} nodes, but a configuration is for one node",
            nodes.len()
        );
        return Err(Error::new(Code::INVALID_CONFIG, what).details("kubectl get node NAME -o json"));
    };
    if node.ranges.is_empty() {
        let what = format!("node {} has no spec.podCIDRs", node.name);
        return Err(Error::new(Code::INVALID_CONFIG, what).details(
            "kube-controller-manager sets them with --allocate-node-cidrs and --cluster-cidr; or pass a subnet",
        ));
    }
    Ok(node.ranges.clone())
}

/// Rejects a subnet that overlaps a route of this machine, except for routes over the bridge itself.
fn check_overlap(host: &Netlink, subnets: &[Cidr], bridge: &str) -> Result<(), Error> {
    let links = host.links().map_err(unreadable("links"))?;
    for subnet in subnets {
        let family = subnet.family();
        let routes = host.routes(RouteQuery { family, link: None });
        for route in routes.map_err(unreadable("routes"))? {
            if route.dst.is_default() || !route.dst.overlaps(*subnet) {
                continue;
            }
            let link = links.iter().find(|link| Some(link.index) == route.link);
            let link = link.map_or("?", |link| &link.name);
            if link == bridge {
                continue;
            }
            let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            let what = format!(
                "subnet {subnet} overlaps a route of this machine: {}{via} dev {link}",
                route.dst
            );
            return Err(Error::new(Code::INVALID_CONFIG, what)
                .details("pods with these addresses would not be reachable; choose another subnet, or remove the route"));
        }
    }
    Ok(())
}

/// The MTU of the uplink, minus the overhead of a tunnel; `None` without a default route.
fn uplink_mtu(host: &Netlink, overhead: u32) -> Result<Option<u32>, Error> {
    let mtu = host.uplink_mtu().map_err(|cause| {
        Error::failed(format!(
            "cannot look up this machine's default route: {cause}"
        ))
    })?;
    let left = mtu.map(|mtu| mtu.saturating_sub(overhead));
    if left == Some(0) {
        let wanted = format!("the uplink has an MTU of {}", mtu.unwrap_or_default());
        return Err(Error::config("--overhead", overhead, wanted));
    }
    Ok(left)
}

/// Writes a temporary file and renames it, so that runtimes see either no file or a complete one. The name is
/// unpredictable, and an existing file or symbolic link of that name is not opened (open(2), O_EXCL). Runtimes ignore
/// the suffix `.new`.
fn write(file: &Path, content: &str) -> Result<(), Error> {
    let failed = |cause| Error::failed(format!("cannot write {}: {cause}", file.display()));
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let number = random::number().map_err(failed)?;
    let temporary = file.with_file_name(format!(".{name}.{number:016x}.new"));
    let mut options = File::options();
    let options = options.write(true).create_new(true).mode(0o600);
    let mut to = options.open(&temporary).map_err(failed)?;
    let written = to
        .write_all(content.as_bytes())
        // Regardless of the umask: the runtime may run as another user.
        .and_then(|()| to.set_permissions(Permissions::from_mode(0o644)))
        .and_then(|()| to.sync_all())
        .and_then(|()| fs::rename(&temporary, file));
    written.map_err(|cause| {
        let _ = fs::remove_file(&temporary);
        failed(cause)
    })
}
