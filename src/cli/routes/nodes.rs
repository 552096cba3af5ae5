//! The nodes of a cluster and their pod ranges, parsed from stdin.

use std::net::IpAddr;

use serde::Deserialize;

use crate::error::{Code, Error};
use crate::net::{Cidr, ParseError, ip_to_bits, parse_ip};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// `metadata.name`, or the address if stdin consists of lines.
    pub name: String,
    /// Addresses of type InternalIP. The first one of each family is used.
    pub addresses: Vec<IpAddr>,
    pub ranges: Vec<Cidr>,
}

/// The used parts of a Kubernetes Node (API v1, "Node"), or of a list of nodes, which has `items`.
#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    kind: String,
    items: Option<Vec<Object>>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
}

#[derive(Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

/// Whether stdin is a list of nodes or a single Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    List,
    Single,
}

/// Parses the output of `kubectl get nodes -o json`, or lines `ADDRESS CIDR` in which `#` begins a comment.
///
/// # Errors
/// Code 6 for other input; code 7 for invalid values, an empty list, and addresses or ranges of two nodes that overlap. Also
/// code 7 for a single Node: the routes to all other nodes would be removed.
pub fn parse_list(text: &str) -> Result<Vec<ClusterNode>, Error> {
    let (nodes, form) = parse_any(text)?;
    if form == Form::Single {
        let error = invalid(format!(
            "stdin has one node, {}, and no list",
            nodes[0].name
        ));
        return Err(error.details("the list is what kubectl get nodes -o json prints"));
    }
    Ok(nodes)
}

/// Like [`parse_list`], but accepts a single Node.
pub fn parse(text: &str) -> Result<Vec<ClusterNode>, Error> {
    parse_any(text).map(|(nodes, _)| nodes)
}

fn parse_any(text: &str) -> Result<(Vec<ClusterNode>, Form), Error> {
    let (nodes, form) = match text.trim_start().starts_with('{') {
        true => parse_objects(text)?,
        false => (parse_lines(text)?, Form::List),
    };
    if nodes.is_empty() {
        let error = invalid("the list of nodes on stdin is empty");
        return Err(error.details("is kubectl permitted to list them?"));
    }
    check_overlap(&nodes)?;
    Ok((nodes, form))
}

fn parse_objects(text: &str) -> Result<(Vec<ClusterNode>, Form), Error> {
    let object: Object = serde_json::from_str(text).map_err(|cause| {
        let what = format!("stdin is not a list of Kubernetes nodes: {cause}");
        Error::new(Code::DECODE, what).details(
            "pass the output of kubectl get nodes -o json, or lines of an address and a range",
        )
    })?;
    let (objects, form) = match object.items {
        Some(items) => (items, Form::List),
        None => (vec![object], Form::Single),
    };
    let nodes: Result<Vec<ClusterNode>, Error> = objects.into_iter().map(parse_object).collect();
    Ok((nodes?, form))
}

fn parse_object(object: Object) -> Result<ClusterNode, Error> {
    let name = object.metadata.name;
    if !matches!(object.kind.as_str(), "Node" | "") {
        let kind = &object.kind;
        return Err(invalid(format!(
            "stdin has {name:?} of kind {kind}, which is not a Node"
        )));
    }
    if name.is_empty() {
        return Err(invalid("stdin has a node without metadata.name"));
    }
    let invalid = |cause: ParseError| invalid(format!("node {name} on stdin: {cause}"));
    let internal = |address: &&NodeAddress| address.kind == "InternalIP";
    let addresses = object.status.addresses.iter().filter(internal);
    let addresses = addresses.map(|address| parse_ip(&address.address).map_err(invalid));
    let ranges = object.spec.pod_cidrs.filter(|all| !all.is_empty());
    let ranges = ranges.unwrap_or_else(|| object.spec.pod_cidr.into_iter().collect());
    let ranges = ranges.iter().filter(|range| !range.is_empty());
    let ranges = ranges.map(|range| parse_range(range).map_err(invalid));
    Ok(ClusterNode {
        addresses: addresses.collect::<Result<_, _>>()?,
        ranges: ranges.collect::<Result<_, _>>()?,
        name,
    })
}

fn parse_lines(text: &str) -> Result<Vec<ClusterNode>, Error> {
    let mut nodes: Vec<ClusterNode> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let content = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = content.split_whitespace().collect();
        let number = number + 1;
        let invalid = |cause: ParseError| invalid(format!("line {number} on stdin: {cause}"));
        let (address, range) = match words[..] {
            [] => continue,
            [address, range] => (
                parse_ip(address).map_err(invalid)?,
                parse_range(range).map_err(invalid)?,
            ),
            _ => {
                let what = format!(
                    "line {number} on stdin is {:?}, but it must be an address and a range",
                    line.trim()
                );
                return Err(Error::new(Code::DECODE, what).details(
                    "for example 192.168.1.12 10.244.2.0/24; or pass the output of kubectl get nodes -o json",
                ));
            }
        };
        match nodes.iter_mut().find(|node| node.addresses == [address]) {
            Some(node) => node.ranges.push(range),
            None => nodes.push(ClusterNode {
                name: address.to_string(),
                addresses: vec![address],
                ranges: vec![range],
            }),
        }
    }
    Ok(nodes)
}

/// Parses a range and clears its host bits.
fn parse_range(text: &str) -> Result<Cidr, ParseError> {
    text.parse::<Cidr>().map(Cidr::network)
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(Code::INVALID_CONFIG, what)
}

/// Rejects nodes with the same address or overlapping ranges.
fn check_overlap(nodes: &[ClusterNode]) -> Result<(), Error> {
    let mut addresses: Vec<(IpAddr, &str)> = Vec::new();
    let mut ranges: Vec<(Cidr, &str)> = Vec::new();
    for node in nodes {
        addresses.extend(node.addresses.iter().map(|address| (*address, &*node.name)));
        ranges.extend(node.ranges.iter().map(|range| (*range, &*node.name)));
    }
    addresses.sort();
    let same = addresses.windows(2).find(|pair| pair[0].0 == pair[1].0);
    if let Some([(address, one), (_, other)]) = same {
        let what = format!("nodes {one} and {other} both have the address {address}");
        return Err(invalid(what));
    }
    // Sorted by first address, a range that overlaps any other overlaps its neighbour.
    ranges.sort_by_key(|(range, _)| (range.family(), ip_to_bits(range.address()), range.prefix()));
    match ranges.windows(2).find(|pair| pair[0].0.overlaps(pair[1].0)) {
        Some([(range, one), (inside, other)]) => {
            let what =
                format!("the pod ranges of nodes {one} and {other} overlap: {range} and {inside}");
            Err(invalid(what)
                .details("no route was changed; assign another range to one of the nodes"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_output_of_kubectl_is_parsed() {
        let nodes = parse(
            r#"{"apiVersion": "v1", "kind": "List", "items": [
                {"kind": "Node", "metadata": {"name": "a", "labels": {"x": "y"}},
                 "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
                 "status": {"addresses": [{"type": "Hostname", "address": "a"},
                    {"type": "InternalIP", "address": "192.168.0.1"}, {"type": "InternalIP", "address": "fd00::1"}]}},
                {"kind": "Node", "metadata": {"name": "b"}, "spec": {"podCIDR": "10.1.1.0/24"}, "status": {}},
                {"kind": "Node", "metadata": {"name": "c"}, "spec": {}}]}"#,
        )
        .unwrap();
        let [a, b, c] = &nodes[..] else {
            panic!("{nodes:?}")
        };
        assert_eq!((a.addresses.len(), a.ranges.len()), (2, 2));
        assert_eq!(
            (b.addresses.len(), b.ranges[0].to_string()),
            (0, "10.1.1.0/24".to_owned())
        );
        assert_eq!(c.ranges, []);
    }

    #[test]
    fn a_single_node_is_not_a_list() {
        let one =
            r#"{"kind": "Node", "metadata": {"name": "a"}, "spec": {"podCIDR": "10.1.0.0/24"}}"#;
        assert_eq!(parse(one).unwrap().len(), 1);
        let refused = parse_list(one).unwrap_err().to_string();
        assert!(refused.contains("one node, a, and no list"), "{refused}");
        assert!(parse_list(&format!("{{\"items\": [{one}]}}")).is_ok());
        assert!(parse_list("192.168.0.1 10.1.0.0/24\n").is_ok());
    }

    #[test]
    fn lines_are_parsed() {
        let nodes = parse(
            "# two nodes\n192.168.0.1  10.1.0.0/24 # a\n\n192.168.0.2\t10.1.1.7/24\n192.168.0.1 fd00::/64\n",
        );
        let nodes = nodes.unwrap();
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[0].ranges.len(), 2);
        assert_eq!(nodes[1].ranges[0].to_string(), "10.1.1.0/24");
    }

    #[test]
    fn errors_of_overlapping_ranges_name_both_nodes() {
        let overlap = error("1.1.1.1 10.0.0.0/8\n1.1.1.2 11.0.0.0/24\n1.1.1.3 10.2.0.0/24\n");
        assert!(
            overlap.contains("1.1.1.1 and 1.1.1.3 overlap: 10.0.0.0/8 and 10.2.0.0/24"),
            "{overlap}"
        );
        let twice = error("1.1.1.1 10.0.0.0/24\n1.1.1.2 10.0.0.0/24\n");
        assert!(twice.contains("1.1.1.1 and 1.1.1.2"), "{twice}");
        // An intermediate range does not hide the overlap.
        let hidden = error("1.1.1.1 10.0.0.0/8\n1.1.1.2 10.1.0.0/24\n1.1.1.3 10.2.0.0/24\n");
        assert!(hidden.contains("overlap"), "{hidden}");
        let node = |name: &str| {
            format!(
                r#"{{"metadata": {{"name": "{name}"}}, "status": {{"addresses": [{{"type": "InternalIP", "address": "1.1.1.1"}}]}}}}"#
            )
        };
        let same = error(&format!(r#"{{"items": [{}, {}]}}"#, node("a"), node("b")));
        assert!(
            same.contains("nodes a and b both have the address 1.1.1.1"),
            "{same}"
        );
    }

    #[test]
    fn other_input_is_rejected() {
        for (text, wanted) in [
            ("", "empty"),
            ("{\"items\": []}", "empty"),
            ("{\"items\": [{}]}", "without metadata.name"),
            (
                "{\"kind\": \"Pod\", \"metadata\": {\"name\": \"x\"}}",
                "kind Pod",
            ),
            ("{\"items\": 5}", "not a list of Kubernetes nodes"),
            ("10.0.0.1\n", "line 1"),
            ("10.0.0.1 x/24\n", "line 1"),
            ("error: no server\n", "line 1"),
        ] {
            let refused = error(text);
            assert!(refused.contains(wanted), "{text}: {refused}");
        }
    }
}
