//! What is specific to each runtime; the rest follows from its configuration.

use serde_json::Value;

use crate::support::example;

/// Who a host outside sees when a pod sends a packet to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The node: the network masquerades.
    Node,
    /// The pod: other hosts have routes to it.
    Pod,
    /// Nobody: pods have no gateway.
    Nobody,
}

pub struct Runtime {
    /// The file `examples/chains/NAME.conflist`.
    pub name: &'static str,
    /// Commands that prepare a node, one per line.
    pub node: &'static str,
    /// Variables of CNI_ARGS, with `{n}` for the number of the pod.
    pub args: &'static str,
    pub seen_as: Source,
}

impl Runtime {
    pub fn list(&self) -> Value {
        let text = example(&format!("chains/{}.conflist", self.name));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// The plugins of the chain. gangplank's plugins do not execute host-local or static, and those of Go execute
    /// gangplank's.
    pub fn programs(&self) -> Vec<String> {
        let list = self.list();
        let plugins = list["plugins"].as_array().expect("plugins").iter();
        let types = plugins.map(|plugin| plugin["type"].as_str().expect("a type").to_owned());
        types.collect()
    }
}

/// The arguments of the kubelet's container runtimes.
const KUBERNETES: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{n};\
    K8S_POD_INFRA_CONTAINER_ID=0123456789abcdef;K8S_POD_UID=5d9f0ed6-3c3a-4d4b-8a1e-4f7a0c6d0a0{n}";

/// What flanneld writes. With `--ip-masq` it masquerades itself, and the file says that bridge need not.
const FLANNEL: &str = "mkdir -p /run/flannel\n\
    write /run/flannel/subnet.env FLANNEL_NETWORK=10.42.0.0/16 FLANNEL_SUBNET=10.42.0.1/24 FLANNEL_MTU=1450 \
    FLANNEL_IPMASQ=true";

/// The chain in which kube-proxy marks packets, and its masquerade rule.
const KUBE_PROXY: &str = "iptables -t nat -N KUBE-MARK-MASQ\n\
    iptables -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
    iptables -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE";

const NODE: Runtime = Runtime {
    name: "",
    node: "",
    args: "IgnoreUnknown=1",
    seen_as: Source::Node,
};

const KUBERNETES_NODE: Runtime = Runtime {
    args: KUBERNETES,
    seen_as: Source::Pod,
    ..NODE
};

pub const TABLE: &[Runtime] = &[
    Runtime {
        name: "containerd",
        args: KUBERNETES,
        ..NODE
    },
    Runtime {
        name: "cri-o",
        args: KUBERNETES,
        ..NODE
    },
    Runtime {
        name: "cri-o-ipv4",
        args: KUBERNETES,
        ..NODE
    },
    Runtime {
        name: "nerdctl",
        ..NODE
    },
    Runtime {
        name: "nerdctl-ipv6",
        ..NODE
    },
    Runtime {
        name: "nomad",
        args: "IgnoreUnknown=true",
        ..NODE
    },
    Runtime {
        name: "buildkit",
        args: "",
        ..NODE
    },
    Runtime {
        name: "minikube",
        args: KUBERNETES,
        ..NODE
    },
    Runtime {
        name: "faasd",
        args: "",
        ..NODE
    },
    Runtime {
        name: "kind",
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "k3s",
        node: FLANNEL,
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "flannel",
        node: FLANNEL,
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "talos",
        node: FLANNEL,
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "kube-router",
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "k0s",
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "kops-kubenet",
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "aks-kubenet",
        node: KUBE_PROXY,
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "eks",
        ..KUBERNETES_NODE
    },
    Runtime {
        name: "talosctl",
        args: "IgnoreUnknown=1;IP=10.5.0.{n}/24;GATEWAY=10.5.0.1",
        ..NODE
    },
    Runtime {
        name: "kubevirt",
        node: "ip link add br1 type bridge\nip link set br1 up",
        args: KUBERNETES,
        seen_as: Source::Nobody,
    },
    Runtime {
        name: "kubevirt-vlan",
        node: "ip link add br1 type bridge\nip link set br1 up",
        args: KUBERNETES,
        seen_as: Source::Nobody,
    },
    Runtime {
        name: "multus-tuning",
        seen_as: Source::Nobody,
        ..KUBERNETES_NODE
    },
];
