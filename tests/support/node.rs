//! Hosts and pods.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use super::namespace::{self, Namespace, on_own_thread};
use super::{Call, Network, go_plugins, plugin_file};

/// A host: network and mount namespaces of its own, with empty /run and /var/lib. It goes when it is dropped.
pub struct Node {
    namespace: Namespace,
}

impl Deref for Node {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Node {
    /// Where a node has its plugins.
    pub const BIN: &str = namespace::BIN;

    /// A host with nothing but a loopback interface, which is up.
    pub fn new(name: &str) -> Node {
        let namespace = Namespace::host(name).unwrap();
        let node = Node { namespace };
        node.run("ip link set lo up");
        for plugin in ["bridge", "host-local", "loopback"] {
            node.install(plugin);
        }
        node
    }

    /// Puts a plugin into the node's directory of plugins.
    pub fn install(&self, plugin: &str) {
        self.link_plugin(&plugin_file(plugin), plugin);
    }

    /// Puts a plugin of the reference beside ours; it is then called `go-NAME`.
    pub fn install_go_plugin(&self, plugin: &str) {
        let file = go_plugins().join(plugin);
        self.link_plugin(&file, &format!("go-{plugin}"));
    }

    fn link_plugin(&self, file: &Path, name: &str) {
        self.inside(|| std::os::unix::fs::symlink(file, format!("{}/{name}", Node::BIN)))
            .unwrap();
    }

    /// Puts a shell script where a program is, for this node alone.
    pub fn replace_program(&self, program: &str, script: &str) {
        let file = format!("/run/replaced-{}", program.replace('/', "-"));
        self.write(&file, &format!("#!/bin/sh\n{script}\n"));
        self.run(&format!("chmod 755 {file}"));
        self.bind(&file, program);
    }

    /// Runs shell commands before each call of iptables on this node; `$name` is the name of the called program.
    /// `file` is that of all programs of a variant: `/usr/sbin/xtables-nft-multi` or `/usr/sbin/xtables-legacy-multi`.
    pub fn run_before_iptables(&self, file: &str, script: &str) {
        self.run(&format!("cp {file} /run/xtables"));
        let script = format!("name=${{0##*/}}\n{script}\nexec /run/xtables $name \"$@\"");
        self.replace_program(file, &script);
    }

    /// Lays one file over another, for this node alone.
    pub fn bind(&self, file: &str, over: &str) {
        self.inside(|| {
            let over = fs::canonicalize(over).unwrap();
            let none: Option<&str> = None;
            mount(Some(file), &over, none, MsFlags::MS_BIND, none).unwrap();
        });
    }

    /// Makes one of the two variants, `xtables-nft-multi` or `xtables-legacy-multi`, this node's iptables.
    pub fn use_iptables_variant(&self, variant: &str) {
        // Of the programs' names only argv[0] counts, so one file may be the one of all of them.
        let variant = format!("/usr/sbin/{variant}");
        let programs = ["iptables", "ip6tables"].map(|name| format!("/usr/sbin/{name}"));
        let installed = |name: &String| fs::canonicalize(name).unwrap();
        let files: BTreeSet<PathBuf> = programs.iter().map(installed).collect();
        for file in files {
            let file = file.to_str().unwrap();
            if file != variant {
                self.bind(&variant, file);
            }
        }
    }

    /// Takes the last file laid over another away.
    pub fn unbind(&self, over: &str) {
        self.inside(|| umount2(&fs::canonicalize(over).unwrap(), MntFlags::MNT_DETACH))
            .unwrap();
    }

    /// A pod on this node: a network namespace at /run/netns/NAME, as `ip netns add` makes it.
    pub fn pod(&self, name: &str) -> Pod {
        let namespace = self.namespace.pod(name).unwrap();
        let path = namespace.netns_path();
        Pod { namespace, path }
    }

    /// Waits until the kernel has deleted the links of namespaces that have ended, which takes it a while.
    pub fn wait_until_veths_are_gone(&self) {
        for _ in 0..200 {
            if !self.run("ip -o link").contains("veth") {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{}", self.run("ip -o link"));
    }

    /// A call of a plugin on this node.
    pub fn cni(&self, plugin: &str) -> Call<'_> {
        Call::new(self, plugin)
    }

    /// A network of the plugin that the configuration names.
    pub fn network(&self, config: impl Into<Value>) -> Network<'_> {
        Network::new(self, config.into())
    }

    /// A network from the text of a configuration file.
    pub fn network_from(&self, text: &str) -> Network<'_> {
        Network::new(self, serde_json::from_str(text).unwrap())
    }
}

/// A pod. Its interfaces are those that plugins made, and a loopback interface that is down.
pub struct Pod {
    namespace: Namespace,
    /// CNI_NETNS.
    pub path: String,
}

impl Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Pod {
    /// Its name, which is also its container id.
    pub fn id(&self) -> &str {
        &self.name
    }

    /// Ends the pod: its namespace goes, with the path to it.
    pub fn end(self) {
        let Pod { namespace, path } = self;
        let host = namespace.mntns.clone();
        drop(namespace);
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&*host, CloneFlags::CLONE_NEWNS).unwrap();
            umount2(path.as_str(), MntFlags::MNT_DETACH).unwrap();
            fs::remove_file(&path).unwrap();
        });
    }
}

/// Joins two nodes by a cable: `wire(&a, "eth0", &b, "eth1")`. Both ends are up.
pub fn wire(one: &Node, one_link: &str, other: &Node, other_link: &str) {
    let netns = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        other.netns.as_raw_fd()
    );
    one.run(&format!(
        "ip link add {one_link} type veth peer name {other_link} netns {netns}"
    ));
    one.run(&format!("ip link set {one_link} up"));
    other.run(&format!("ip link set {other_link} up"));
}
