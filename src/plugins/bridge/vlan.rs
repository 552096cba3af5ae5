//! The keys `vlan`, `vlanTrunk` and `preserveDefaultVlan`, and the VLANs that a port gets from them. Pure data.
//!
//! As commands of bridge(8): `vlan` is `bridge vlan add vid N pvid untagged dev PORT`, an item of `vlanTrunk` is
//! `bridge vlan add vid FIRST-LAST dev PORT`. Unless `preserveDefaultVlan` is true, `bridge vlan del vid 1 dev PORT`
//! precedes them.

use serde::{Deserialize, Serialize};

use crate::cni::json::{JsonCursor, is_unset, within};
use crate::error::Error;
use crate::net::{IfName, PortVlans, VlanId, VlanSet};
use crate::plugins::bridge::role::Gateway;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VlanKeys {
    #[serde(skip_serializing_if = "is_unset")]
    pub vlan: Option<i64>,
    #[serde(skip_serializing_if = "is_unset")]
    pub vlan_trunk: Option<Vec<TrunkKeys>>,
    #[serde(skip_serializing_if = "is_unset")]
    pub preserve_default_vlan: bool,
}

/// An item of `vlanTrunk`: a range, a single VLAN, both or nothing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TrunkKeys {
    #[serde(skip_serializing_if = "is_unset")]
    pub id: Option<i64>,
    #[serde(rename = "minID", skip_serializing_if = "is_unset")]
    pub min_id: Option<i64>,
    #[serde(rename = "maxID", skip_serializing_if = "is_unset")]
    pub max_id: Option<i64>,
}

/// The VLAN settings of a network whose bridge must have VLAN filtering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlans {
    /// The VLAN of the container's untagged frames (`vlan`).
    native: Option<VlanId>,
    /// The VLANs whose tagged frames the container receives (`vlanTrunk`).
    trunk: VlanSet,
    default: DefaultVlan,
    /// The host's interface in `native` that has the gateway address.
    pub gateway: Option<IfName>,
}

/// The VLAN that the bridge assigns to each new port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DefaultVlan {
    /// Removed from the port, as by the Go plugin since 1.8.0.
    Removed,
    /// Kept (`preserveDefaultVlan`).
    Preserved,
}

impl Vlans {
    /// Parses the three keys; `None` if none is set. An empty `vlanTrunk` counts as set.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for an invalid number; the error names the key.
    pub fn parse(
        root: &JsonCursor,
        bridge: &IfName,
        gateway: Gateway,
    ) -> Result<Option<Vlans>, Error> {
        let keys: VlanKeys = root.read()?;
        let native = keys.vlan.unwrap_or_default();
        let native = VlanId::new(within("vlan", native, 0..=*VlanId::RANGE.end())?);
        let default = match keys.preserve_default_vlan {
            true => DefaultVlan::Preserved,
            false => DefaultVlan::Removed,
        };
        if native.is_none() && keys.vlan_trunk.is_none() {
            return Ok(None);
        }
        let gateway = native.filter(|_| gateway != Gateway::None);
        let gateway = gateway.map(|vlan| gateway_name(bridge, vlan));
        let mut vlans = VlanSet::EMPTY;
        for (index, item) in keys.vlan_trunk.iter().flatten().enumerate() {
            vlans = vlans.union(item.vlans(&format!("vlanTrunk[{index}]"))?);
        }
        Ok(Some(Vlans {
            native,
            trunk: vlans,
            default,
            gateway: gateway.transpose()?,
        }))
    }

    /// The VLANs of the container's port; `None` if it keeps those that the bridge assigns.
    pub fn port(&self) -> Option<PortVlans> {
        // With a trunk alone, untagged frames are in VLAN 1, as with the Go plugin.
        let is_default = !self.trunk.is_empty();
        let native = self.native.or(is_default.then_some(VlanId::DEFAULT))?;
        Some(PortVlans::new(native, self.trunk))
    }

    /// The VLANs of the port that leads to the gateway's interface.
    pub fn gateway_port(&self) -> Option<PortVlans> {
        let native = self.native.filter(|_| self.gateway.is_some())?;
        Some(PortVlans::new(native, VlanSet::EMPTY))
    }

    /// The bridge's default VLAN, if a new port with these VLANs must not be in it.
    pub fn default_to_remove(
        &self,
        wanted: &PortVlans,
        default_pvid: Option<VlanId>,
    ) -> Option<VlanId> {
        default_pvid
            .filter(|vlan| self.default == DefaultVlan::Removed && !wanted.all().contains(*vlan))
    }

    /// The key that requires VLAN filtering, with its value, for errors.
    pub fn requirement(&self) -> String {
        match self.native {
            Some(vlan) => format!("vlan is {vlan}"),
            None if self.trunk.is_empty() => "vlanTrunk is []".to_owned(),
            None => format!("vlanTrunk is {}", self.trunk),
        }
    }

    /// The first difference of a port's VLANs. Membership in the bridge's default VLAN is accepted regardless of
    /// `preserveDefaultVlan`, because the Go plugin before 1.8.0 keeps it.
    pub fn difference(&self, observed: &PortVlans, default_pvid: Option<VlanId>) -> Option<String> {
        let wanted = self.port()?;
        if observed.pvid != wanted.pvid || !wanted.untagged.difference(observed.untagged).is_empty()
        {
            let actual = match observed.pvid {
                Some(pvid) if observed.untagged.contains(pvid) => format!("are in VLAN {pvid}"),
                Some(pvid) => format!("are in VLAN {pvid}, which is tagged on egress"),
                None => "are in no VLAN".to_owned(),
            };
            let native = wanted.untagged;
            return Some(format!(
                "its untagged frames {actual}, expected VLAN {native}"
            ));
        }
        let missing = wanted.tagged.difference(observed.tagged);
        if !missing.is_empty() {
            return Some(format!("it has lost VLANs {missing}"));
        }
        let default = default_pvid.map_or(VlanSet::EMPTY, VlanSet::of);
        let unexpected = observed.all().difference(wanted.all()).difference(default);
        (!unexpected.is_empty()).then(|| format!("it is in VLANs {unexpected} too"))
    }
}

/// `<bridge>.<vlan>`, as with the Go plugin.
fn gateway_name(bridge: &IfName, vlan: VlanId) -> Result<IfName, Error> {
    let name = format!("{bridge}.{vlan}");
    name.parse().map_err(|_| {
        let wanted = format!(
            "the gateway's interface would be {name}, longer than the kernel's 15 bytes; choose a shorter name"
        );
        Error::config("bridge", format!("{:?}", bridge.as_str()), wanted)
    })
}

impl TrunkKeys {
    /// The VLANs of the item; `path` is that of the item, for errors.
    fn vlans(&self, path: &str) -> Result<VlanSet, Error> {
        let vlan = |key: &str, number: Option<i64>| -> Result<Option<VlanId>, Error> {
            let path = format!("{path}.{key}");
            let number = number.map(|number| within(&path, number, VlanId::RANGE));
            Ok(number.transpose()?.and_then(VlanId::new))
        };
        let missing = |key: &str, other: &str, vlan: VlanId| {
            let wanted = format!("{other} is {vlan}: a range needs both; for a single VLAN use id");
            Err(Error::config(format!("{path}.{key}"), "missing", wanted))
        };
        let range = match (vlan("minID", self.min_id)?, vlan("maxID", self.max_id)?) {
            (Some(first), Some(last)) if last < first => {
                let wanted = format!("it must not be smaller than minID, which is {first}");
                return Err(Error::config(format!("{path}.maxID"), last, wanted));
            }
            (Some(first), Some(last)) => VlanSet::span(first, last),
            (Some(first), None) => return missing("maxID", "minID", first),
            (None, Some(last)) => return missing("minID", "maxID", last),
            (None, None) => VlanSet::EMPTY,
        };
        let single = vlan("id", self.id)?;
        Ok(range.union(single.map_or(VlanSet::EMPTY, VlanSet::of)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::conf::NetConf;

    fn parse(keys: &str, bridge: &str) -> Result<Option<Vlans>, Error> {
        let text = format!(r#"{{"name": "n", "cniVersion": "1.0.0", {keys}}}"#);
        let conf = NetConf::parse(text.into_bytes()).unwrap();
        Vlans::parse(&conf.root(), &bridge.parse().unwrap(), Gateway::Address)
    }

    fn vlans(keys: &str) -> Vlans {
        parse(keys, "br0").unwrap().unwrap()
    }

    fn id(number: u16) -> VlanId {
        VlanId::new(number).unwrap()
    }

    fn one(number: u16) -> VlanSet {
        VlanSet::of(id(number))
    }

    fn port(keys: &str) -> String {
        let Some(port) = vlans(keys).port() else {
            return "unchanged".to_owned();
        };
        let (native, tagged) = (port.untagged, port.tagged);
        assert_eq!(port.pvid.map(VlanSet::of), Some(native));
        format!("{native} + {tagged}")
    }

    #[test]
    fn a_port_has_its_trunk_and_one_native_vlan() {
        for (keys, expected) in [
            (r#""vlan": 100"#, "100 + "),
            (r#""vlanTrunk": []"#, "unchanged"),
            (r#""vlanTrunk": [{}]"#, "unchanged"),
            (r#""vlanTrunk": [{"id": 7}]"#, "1 + 7"),
            (r#""vlanTrunk": [{"minID": 1, "maxID": 3}]"#, "1 + 2-3"),
            (
                r#""vlan": 0, "VLANTRUNK": [{"minid": 30, "MAXID": 40, "id": 7}, {"minID": 38, "maxID": 42}, {"id": 43}]"#,
                "1 + 7,30-43",
            ),
            (
                r#""vlan": 5, "vlanTrunk": [{"minID": 4, "maxID": 6}]"#,
                "5 + 4,6",
            ),
            (
                r#""vlan": 5, "vlanTrunk": [{"minID": 1, "maxID": 4094}]"#,
                "5 + 1-4,6-4094",
            ),
        ] {
            assert_eq!(port(keys), expected, "{keys}");
        }
    }

    #[test]
    fn without_vlan_or_trunk_no_filtering_is_required() {
        for keys in [
            r#""type": "bridge""#,
            r#""vlan": 0, "vlanTrunk": null, "preserveDefaultVlan": true"#,
        ] {
            assert_eq!(parse(keys, "br0"), Ok(None), "{keys}");
        }
    }

    #[test]
    fn the_default_vlan_is_removed_unless_configured_or_preserved() {
        let removed = |keys: &str, given| {
            let vlans = vlans(keys);
            vlans.default_to_remove(&vlans.port().unwrap(), VlanId::new(given))
        };
        assert_eq!(removed(r#""vlan": 100"#, 1), VlanId::new(1));
        assert_eq!(removed(r#""vlan": 100"#, 9), VlanId::new(9));
        assert_eq!(removed(r#""vlan": 100"#, 0), None);
        assert_eq!(removed(r#""vlan": 1"#, 1), None);
        assert_eq!(removed(r#""vlanTrunk": [{"id": 7}]"#, 1), None);
        assert_eq!(removed(r#""vlan": 9, "vlanTrunk": [{"id": 1}]"#, 1), None);
        assert_eq!(
            removed(r#""vlan": 100, "preserveDefaultVlan": true"#, 1),
            None
        );
    }

    #[test]
    fn the_gateway_has_an_interface_in_the_vlan() {
        let with = vlans(r#""vlan": 100, "vlanTrunk": [{"id": 7}]"#);
        assert_eq!(with.gateway.as_ref().map(IfName::as_str), Some("br0.100"));
        let port = with.gateway_port().unwrap();
        assert_eq!((port.pvid, port.tagged), (VlanId::new(100), VlanSet::EMPTY));
        assert_eq!(vlans(r#""vlanTrunk": [{"id": 7}]"#).gateway, None);
    }

    #[test]
    fn errors_of_invalid_vlans_name_the_valid_values() {
        for (keys, code, message) in [
            (
                r#""vlan": 4095"#,
                7,
                "vlan is 4095, but it must be 0 to 4094",
            ),
            (r#""vlan": -1"#, 7, "vlan is -1, but it must be 0 to 4094"),
            (
                r#""vlan": "5""#,
                6,
                "vlan is \"5\", but it must be a whole number",
            ),
            (
                r#""vlan": 5, "preserveDefaultVlan": 1"#,
                6,
                "preserveDefaultVlan is 1, but",
            ),
            (
                r#""vlanTrunk": {}"#,
                6,
                "vlanTrunk is {}, but it must be a list",
            ),
            (
                r#""vlanTrunk": [null]"#,
                6,
                "vlanTrunk[0] is null, but it must be an object",
            ),
            (
                r#""vlanTrunk": [{}, {"id": 0}]"#,
                7,
                "vlanTrunk[1].id is 0, but it must be 1 to 4094",
            ),
            (
                r#""vlanTrunk": [{"minID": 5, "maxID": 4095}]"#,
                7,
                "vlanTrunk[0].maxID is 4095, but it must be 1 to 4094",
            ),
            (
                r#""vlanTrunk": [{"minID": 5, "maxID": 4}]"#,
                7,
                "vlanTrunk[0].maxID is 4, but it must not be smaller than minID, which is 5",
            ),
            (
                r#""vlanTrunk": [{"minID": 5}]"#,
                7,
                "vlanTrunk[0].maxID is missing, but minID is 5: a range needs both; for a single VLAN use id",
            ),
            (
                r#""vlanTrunk": [{"maxID": 5, "id": 5}]"#,
                7,
                "vlanTrunk[0].minID is missing, but maxID is 5",
            ),
        ] {
            let error = parse(keys, "br0").unwrap_err();
            let expected = format!("configuration: {message}");
            assert!(error.msg.starts_with(&expected), "{keys}: {error:?}");
            assert_eq!(error.code.0, code, "{keys}");
        }
        let error = parse(r#""vlan": 100"#, "a-long-bridge").unwrap_err();
        assert!(
            error.msg.contains("bridge is \"a-long-bridge\""),
            "{error:?}"
        );
        assert!(error.msg.contains("a-long-bridge.100"), "{error:?}");
    }

    #[test]
    fn differences_of_a_port_name_its_vlans() {
        let wanted = vlans(r#""vlan": 100, "vlanTrunk": [{"minID": 10, "maxID": 12}]"#);
        let right = wanted.port().unwrap();
        let check = |change: &dyn Fn(&mut PortVlans)| {
            let mut observed = right;
            change(&mut observed);
            wanted
                .difference(&observed, Some(VlanId::DEFAULT))
                .unwrap_or_default()
        };
        assert_eq!(check(&|_| {}), "");
        assert_eq!(
            check(&|port| port.untagged = port.untagged.union(one(1))),
            ""
        );
        assert_eq!(
            check(&|port| port.tagged = port.tagged.difference(one(11))),
            "it has lost VLANs 11"
        );
        assert_eq!(
            check(&|port| port.tagged = port.tagged.union(one(200))),
            "it is in VLANs 200 too"
        );
        assert_eq!(
            check(&|port| port.pvid = VlanId::new(1)),
            "its untagged frames are in VLAN 1, which is tagged on egress, expected VLAN 100"
        );
        assert_eq!(
            check(&|port| *port = PortVlans::new(id(9), port.tagged)),
            "its untagged frames are in VLAN 9, expected VLAN 100"
        );
        assert_eq!(
            check(&|port| port.pvid = None),
            "its untagged frames are in no VLAN, expected VLAN 100"
        );
        let keeps_all = vlans(r#""vlanTrunk": []"#);
        assert_eq!(keeps_all.difference(&right, None), None);
    }
}
