//! The configuration of host-local, typed: whoever holds a [`Config`] can reserve from it.
//!
//! The numbers of range sets are their place in one list (`runtimeConfig.ipRanges`, then the range in `ipam` itself,
//! then `ipam.ranges`), because the files of the reference carry them.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::cni::args::{Args, parse_requested_ip};
use crate::cni::conf::NetConf;
use crate::cni::json::JsonCursor;
use crate::cni::result::parse_route;
use crate::cni::{Schema, Version};
use crate::error::{Code, Error};
use crate::ipam::range::{Range, RangeSet};
use crate::net::{Family, Route};

/// The keys, for the log.
pub const KEYS: &[&str] = &[
    "ipam subnet rangestart rangeend gateway ranges routes resolvconf datadir",
    "ranges subnet rangestart rangeend gateway",
    "ipranges subnet rangestart rangeend gateway",
];

/// The default of `ipam.dataDir`.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// The longest name of a file (NAME_MAX): the network's name is one.
const NAME_MAX: usize = 255;

/// How many ranges, routes and addresses asked for are taken. Each is compared with each, so that more take long;
/// nobody needs as many.
const MAX_ELEMENTS: usize = 4096;

/// What to reserve from, valid as a whole.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one; the position is the number of the set.
    pub pools: Vec<Pool>,
    /// Addresses nobody gets: the gateways of all ranges.
    pub gateways: Vec<IpAddr>,
    /// Routes for the result.
    pub routes: Vec<Route>,
    /// Where the result's name service is read from.
    pub resolv_conf: Option<PathBuf>,
}

/// A range set and the address asked for in it.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The set.
    pub set: RangeSet,
    /// Lies in the set and is no gateway.
    pub requested: Option<IpAddr>,
}

/// An address asked for, and where.
struct Requested {
    address: IpAddr,
    place: String,
    code: Code,
}

impl Requested {
    fn invalid(&self, wanted: impl std::fmt::Display) -> Error {
        let Requested { place, address, .. } = self;
        Error::new(self.code, format!("{place} is {address}, but {wanted}"))
    }
}

impl Config {
    /// Reads the whole configuration and the addresses asked for.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for a value that is refused, 4 for an address in CNI_ARGS that is.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<Config, Error> {
        let root = conf.root();
        let Some(ipam) = root.object("ipam")? else {
            let wanted = "host-local needs an object with ranges";
            return Err(root.at("ipam").invalid("missing", wanted));
        };
        check_file_names(conf, &ipam)?;
        let mut sets = parse_sets(&root, &ipam)?;
        check_together(&sets, &ipam, conf.version)?;
        let gateways = gateways_of(&sets);
        for set in &mut sets {
            set.settle_edges(&gateways);
        }
        if let Some(index) = sets.iter().position(|set| set.usable(&gateways) == 0) {
            let wanted = "it has no address that is not a gateway";
            let place = ipam.at("ranges");
            return Err(place.invalid(format!("{} in range set {index}", sets[index]), wanted));
        }
        let requested = parse_requested(&root, args)?;
        Ok(Config {
            routes: parse_routes(&ipam, &sets, conf.version)?,
            pools: assign(sets, &requested, &gateways)?,
            gateways,
            resolv_conf: ipam.non_empty_text("resolvConf")?.map(PathBuf::from),
        })
    }
}

fn check_file_names(conf: &NetConf, ipam: &JsonCursor) -> Result<(), Error> {
    let length = conf.name.as_str().len();
    if length > NAME_MAX {
        let wanted = format!("host-local names a directory after it: at most {NAME_MAX} bytes");
        let name = conf.root().at("name");
        return Err(name.invalid(format!("{length} bytes long"), wanted));
    }
    for key in ["dataDir", "resolvConf"] {
        if let Some(path) = ipam.text(key)?.filter(|path| path.contains('\0')) {
            return Err(ipam
                .at(key)
                .invalid(format!("{path:?}"), "it must be a path"));
        }
    }
    Ok(())
}

fn parse_sets(root: &JsonCursor, ipam: &JsonCursor) -> Result<Vec<RangeSet>, Error> {
    let mut sets = Vec::new();
    if let Some(runtime) = root.object("runtimeConfig")? {
        sets.extend(parse_set_list(&runtime, "ipRanges")?);
    }
    // Without a subnet its siblings mean nothing, as in the reference.
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

/// The elements of a list that may be absent.
fn elements<'a>(parent: &JsonCursor<'a>, key: &str) -> Result<Vec<JsonCursor<'a>>, Error> {
    let list = parent.list(key)?.unwrap_or_default();
    limit(list.len(), &parent.at(key)).map(|()| list)
}

fn limit(count: usize, place: &JsonCursor) -> Result<(), Error> {
    if count <= MAX_ELEMENTS {
        return Ok(());
    }
    let wanted = format!("it may have {MAX_ELEMENTS} at most");
    Err(place.invalid(format!("a list of {count}"), wanted))
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

/// What concerns more than one set.
fn check_together(sets: &[RangeSet], ipam: &JsonCursor, version: Version) -> Result<(), Error> {
    let count = sets.iter().map(|set| set.ranges().len()).sum();
    limit(count, &ipam.at("ranges"))?;
    for (index, set) in sets.iter().enumerate() {
        for (earlier, other) in sets[..index].iter().enumerate() {
            if let Some((theirs, ours)) = other.overlap(set) {
                let value = format!("{theirs} in range set {earlier} and {ours} in set {index}");
                return Err(ipam
                    .at("ranges")
                    .invalid(value, "range sets must not overlap"));
            }
        }
    }
    let crowded = Family::BOTH
        .into_iter()
        .find(|family| sets.iter().filter(|set| set.family() == *family).count() > 1);
    match crowded.filter(|_| version.schema() == Schema::V0_1) {
        None => Ok(()),
        Some(family) => Err(ipam.at("ranges").invalid(
            format!("more than one {family} set"),
            format!(
                "a result of cniVersion {version} has one address per family: use 0.3.0 or newer"
            ),
        )),
    }
}

fn gateways_of(sets: &[RangeSet]) -> Vec<IpAddr> {
    let ranges = sets.iter().flat_map(RangeSet::ranges);
    let mut gateways: Vec<IpAddr> = ranges.map(Range::gateway).collect();
    gateways.sort();
    gateways.dedup();
    gateways
}

/// CNI_ARGS first, then `args.cni.ips`, then `runtimeConfig.ips`; what is asked for twice counts once.
fn parse_requested(root: &JsonCursor, args: &Args) -> Result<Vec<Requested>, Error> {
    let mut requested: Vec<Requested> = Vec::new();
    let mut ask = |address: IpAddr, place: String, code: Code| {
        if requested.iter().all(|earlier| earlier.address != address) {
            requested.push(Requested {
                address,
                place,
                code,
            });
        }
    };
    for address in args.ips()? {
        ask(
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
            let place = format!("configuration: {path}.ips[{index}]");
            ask(
                ip.parse_with(parse_requested_ip)?,
                place,
                Code::INVALID_CONFIG,
            );
        }
    }
    Ok(requested)
}

/// Gives each address asked for to the set it lies in: to one, since sets do not overlap.
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
    for one in requested {
        if gateways.contains(&one.address) {
            return Err(one.invalid("that is the gateway's own address"));
        }
        let inside = pools
            .iter_mut()
            .find(|pool| pool.set.range_of(one.address).is_some());
        let Some(pool) = inside else {
            return Err(one.invalid(format!("it must lie in {}", all.join(" or "))));
        };
        if let Some(other) = pool.requested.replace(one.address) {
            let set = &pool.set;
            return Err(one.invalid(format!(
                "{other} is asked for as well, and one address is reserved from {set}"
            )));
        }
    }
    Ok(pools)
}

/// The routes that a result of this version has room for: before 0.3.0 those of the families that have an address, by
/// destination and next hop alone (CNI spec 0.2.0, "Result"). The Go plugin bridge gets no others from its host-local.
fn parse_routes(
    ipam: &JsonCursor,
    sets: &[RangeSet],
    version: Version,
) -> Result<Vec<Route>, Error> {
    let routes = elements(ipam, "routes")?.into_iter().map(parse_route);
    let routes: Vec<Route> = routes.collect::<Result<_, _>>()?;
    if version.schema() != Schema::V0_1 {
        return Ok(routes);
    }
    let has_address = |route: &Route| sets.iter().any(|set| set.family() == route.dst.family());
    Ok(routes
        .into_iter()
        .filter(has_address)
        .map(|route| Route::new(route.dst, route.gw))
        .collect())
}

#[cfg(test)]
mod tests;
