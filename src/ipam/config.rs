//! The configuration of host-local.
//!
//! A range set is numbered by its index in one list: `runtimeConfig.ipRanges`, then the range in `ipam` itself, then
//! `ipam.ranges`. The `last_reserved_ip.N` files of the Go plugin use these numbers.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cni::args::{Args, parse_requested_ip};
use crate::cni::conf::NetConf;
use crate::cni::json::{JsonCursor, is_unset};
use crate::cni::result::{RouteKeys, parse_route};
use crate::cni::{Schema, Version};
use crate::error::{Code, Error};
use crate::ipam::range::{Range, RangeKeys, RangeSet};
use crate::net::{Family, Route};

/// The keys of host-local in a configuration.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HostLocalKeys {
    pub ipam: IpamKeys,
    #[serde(skip_serializing_if = "is_unset")]
    pub runtime_config: RuntimeKeys,
}

/// `subnet` and the keys after it are those of a range ([`RangeKeys`]).
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IpamKeys {
    pub r#type: String,
    #[serde(skip_serializing_if = "is_unset")]
    pub ranges: Vec<Vec<RangeKeys>>,
    #[serde(skip_serializing_if = "is_unset")]
    pub routes: Vec<RouteKeys>,
    #[serde(skip_serializing_if = "is_unset")]
    pub resolv_conf: String,
    #[serde(skip_serializing_if = "is_unset")]
    pub data_dir: String,
    #[serde(skip_serializing_if = "is_unset")]
    pub subnet: Option<String>,
    #[serde(skip_serializing_if = "is_unset")]
    pub range_start: String,
    #[serde(skip_serializing_if = "is_unset")]
    pub range_end: String,
    #[serde(skip_serializing_if = "is_unset")]
    pub gateway: String,
}

#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuntimeKeys {
    #[serde(skip_serializing_if = "is_unset")]
    pub ip_ranges: Vec<Vec<RangeKeys>>,
}

/// The default of `ipam.dataDir`.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// NAME_MAX: a directory is named after the network.
const NAME_MAX: usize = 255;

/// Maximum number of ranges, routes and requested addresses: checking them takes quadratic time.
const MAX_ELEMENTS: usize = 4096;

#[derive(Clone, Debug)]
pub struct Config {
    /// At least one; the index is the number of the set.
    pub pools: Vec<Pool>,
    /// The gateways of all ranges, which are never allocated.
    pub gateways: Vec<IpAddr>,
    pub routes: Vec<Route>,
    /// The source of the result's `dns`.
    pub resolv_conf: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Pool {
    pub set: RangeSet,
    /// In the set, and not a gateway.
    pub requested: Option<IpAddr>,
}

/// A requested address and the key that requests it.
struct Requested {
    address: IpAddr,
    key: String,
    code: Code,
}

impl Requested {
    fn invalid(&self, wanted: impl std::fmt::Display) -> Error {
        let Requested { key, address, .. } = self;
        Error::new(self.code, format!("{key} is {address}, but {wanted}"))
    }
}

impl Config {
    /// Parses the configuration and the requested addresses.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for an invalid value, 4 for an invalid address in CNI_ARGS.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<Config, Error> {
        let root = conf.root();
        let Some(ipam) = root.object("ipam")? else {
            let wanted = "host-local needs an object with ranges";
            return Err(root.at("ipam").invalid("missing", wanted));
        };
        let keys: HostLocalKeys = root.read()?;
        check_file_names(conf, &keys.ipam)?;
        let mut sets = parse_sets(&root, &ipam)?;
        check_sets(&sets, &ipam, conf.version)?;
        let gateways = gateways_of(&sets);
        for set in &mut sets {
            set.allow_edges_if_needed(&gateways);
        }
        if let Some(index) = sets.iter().position(|set| set.usable(&gateways) == 0) {
            let wanted = "it has no address that is not a gateway";
            let ranges = ipam.at("ranges");
            return Err(ranges.invalid(format!("{} in range set {index}", sets[index]), wanted));
        }
        let requested = parse_requested(&root, args)?;
        Ok(Config {
            routes: parse_routes(&ipam, conf.version, |family| {
                sets.iter().any(|set| set.family() == family)
            })?,
            pools: assign(sets, &requested, &gateways)?,
            gateways,
            resolv_conf: Some(keys.ipam.resolv_conf)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
        })
    }
}

fn check_file_names(conf: &NetConf, ipam: &IpamKeys) -> Result<(), Error> {
    let length = conf.name.as_str().len();
    if length > NAME_MAX {
        let wanted = format!("host-local names a directory after it: at most {NAME_MAX} bytes");
        return Err(Error::config(
            "name",
            format!("{length} bytes long"),
            wanted,
        ));
    }
    for (key, path) in [
        ("dataDir", &ipam.data_dir),
        ("resolvConf", &ipam.resolv_conf),
    ] {
        if path.contains('\0') {
            let key = format!("ipam.{key}");
            return Err(Error::config(key, format!("{path:?}"), "it must be a path"));
        }
    }
    Ok(())
}

fn parse_sets(root: &JsonCursor, ipam: &JsonCursor) -> Result<Vec<RangeSet>, Error> {
    let mut sets = Vec::new();
    if let Some(runtime) = root.object("runtimeConfig")? {
        sets.extend(parse_set_list(&runtime, "ipRanges")?);
    }
    // Without `subnet`, its sibling keys are ignored, as in the Go plugin.
    if ipam.get("subnet").is_some() {
        sets.push(RangeSet::new(vec![Range::parse(ipam)?], ipam)?);
    }
    sets.extend(parse_set_list(ipam, "ranges")?);
    if sets.is_empty() {
        let wanted = "host-local needs a range, for example [[{\"subnet\": \"10.1.2.0/24\"}]]";
        return Err(ipam.at("ranges").invalid("missing", wanted));
    }
    Ok(sets)
}

/// A list; empty if absent.
fn elements<'a>(parent: &JsonCursor<'a>, key: &str) -> Result<Vec<JsonCursor<'a>>, Error> {
    let list = parent.list(key)?.unwrap_or_default();
    limit(list.len(), &parent.at(key)).map(|()| list)
}

fn limit(count: usize, list: &JsonCursor) -> Result<(), Error> {
    if count <= MAX_ELEMENTS {
        return Ok(());
    }
    let wanted = format!("it may have {MAX_ELEMENTS} at most");
    Err(list.invalid(format!("a list of {count}"), wanted))
}

fn parse_set_list(parent: &JsonCursor, key: &str) -> Result<Vec<RangeSet>, Error> {
    let sets = elements(parent, key)?;
    let parse = |set: JsonCursor| {
        let ranges = set.clone().into_list()?;
        limit(ranges.len(), &set)?;
        let ranges = ranges
            .into_iter()
            .map(|range| Range::parse(&range.into_object()?));
        RangeSet::new(ranges.collect::<Result<_, _>>()?, &set)
    };
    sets.into_iter().map(parse).collect()
}

/// Checks the sets against each other.
fn check_sets(sets: &[RangeSet], ipam: &JsonCursor, version: Version) -> Result<(), Error> {
    let count = sets.iter().map(|set| set.ranges().len()).sum();
    limit(count, &ipam.at("ranges"))?;
    for (index, set) in sets.iter().enumerate() {
        for (earlier, other) in sets[..index].iter().enumerate() {
            if let Some((first, second)) = other.overlap(set) {
                let value = format!("{first} in range set {earlier} and {second} in set {index}");
                return Err(ipam
                    .at("ranges")
                    .invalid(value, "range sets must not overlap"));
            }
        }
    }
    let families = sets.iter().map(RangeSet::family);
    check_families(families, version).map_err(|(family, wanted)| {
        let value = format!("more than one {family} set");
        ipam.at("ranges").invalid(value, wanted)
    })
}

/// Whether a result of this version can have addresses of these families. The error is a repeated family, and the
/// requirement.
pub(super) fn check_families(
    families: impl Iterator<Item = Family> + Clone,
    version: Version,
) -> Result<(), (Family, String)> {
    let is_repeated = |family: &Family| families.clone().filter(|it| it == family).count() > 1;
    let repeated = Family::BOTH.into_iter().find(is_repeated);
    match repeated.filter(|_| version.schema() == Schema::V0_1) {
        None => Ok(()),
        Some(family) => {
            let wanted = format!(
                "a result of cniVersion {version} has one address per family: use 0.3.0 or newer"
            );
            Err((family, wanted))
        }
    }
}

fn gateways_of(sets: &[RangeSet]) -> Vec<IpAddr> {
    let ranges = sets.iter().flat_map(RangeSet::ranges);
    let mut gateways: Vec<IpAddr> = ranges.map(Range::gateway).collect();
    gateways.sort();
    gateways.dedup();
    gateways
}

/// In order: CNI_ARGS, `args.cni.ips`, `runtimeConfig.ips`. Duplicates are ignored.
fn parse_requested(root: &JsonCursor, args: &Args) -> Result<Vec<Requested>, Error> {
    let mut requested: Vec<Requested> = Vec::new();
    let mut add = |address: IpAddr, key: String, code: Code| {
        if requested.iter().all(|earlier| earlier.address != address) {
            requested.push(Requested { address, key, code });
        }
    };
    for address in args.ips()? {
        add(
            address,
            "CNI_ARGS: IP".to_owned(),
            Code::INVALID_ENVIRONMENT,
        );
    }
    let cni = match root.object("args")? {
        Some(args) => args.object("cni")?,
        None => None,
    };
    let parents = [
        ("args.cni", cni),
        ("runtimeConfig", root.object("runtimeConfig")?),
    ];
    for (path, parent) in parents {
        let Some(parent) = parent else { continue };
        for (index, ip) in elements(&parent, "ips")?.iter().enumerate() {
            let key = format!("configuration: {path}.ips[{index}]");
            add(
                ip.parse_with(parse_requested_ip)?,
                key,
                Code::INVALID_CONFIG,
            );
        }
    }
    Ok(requested)
}

/// Assigns each requested address to the only set that contains it; sets do not overlap.
fn assign(
    sets: Vec<RangeSet>,
    requested: &[Requested],
    gateways: &[IpAddr],
) -> Result<Vec<Pool>, Error> {
    let all: Vec<String> = sets.iter().map(RangeSet::to_string).collect();
    let pool = |set| Pool {
        set,
        requested: None,
    };
    let mut pools: Vec<Pool> = sets.into_iter().map(pool).collect();
    for request in requested {
        if gateways.contains(&request.address) {
            return Err(request.invalid("it is the gateway's own address"));
        }
        let pool = pools
            .iter_mut()
            .find(|pool| pool.set.range_of(request.address).is_some());
        let Some(pool) = pool else {
            return Err(request.invalid(format!("it must lie in {}", all.join(" or "))));
        };
        if let Some(other) = pool.requested.replace(request.address) {
            let set = &pool.set;
            return Err(request.invalid(format!(
                "{other} is requested as well, and only one address is reserved from {set}"
            )));
        }
    }
    Ok(pools)
}

/// The routes that a result of this version can represent: before 0.3.0, only destination and next hop of the families
/// that have an address (CNI spec 0.2.0, "Result"). The Go plugin bridge gets the same routes from its host-local.
///
/// # Errors
/// Code 6 or 7 for an invalid route.
pub(super) fn parse_routes(
    ipam: &JsonCursor,
    version: Version,
    has_address: impl Fn(Family) -> bool,
) -> Result<Vec<Route>, Error> {
    let routes = elements(ipam, "routes")?.into_iter().map(parse_route);
    let routes: Vec<Route> = routes.collect::<Result<_, _>>()?;
    if version.schema() != Schema::V0_1 {
        return Ok(routes);
    }
    Ok(routes
        .into_iter()
        .filter(|route| has_address(route.dst.family()))
        .map(|route| Route::new(route.dst, route.gw))
        .collect())
}

#[cfg(test)]
mod tests;
