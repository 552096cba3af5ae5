//! Nodes and pods.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use super::namespace::{self, Namespace, on_own_thread};
use super::{Call, Chain, Network, PLUGINS, go_plugins, plugin_file};

/// A host with its own network and mount namespaces, and with empty /run and /var/lib. They are deleted when it is
/// dropped.
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
    pub const BIN: &str = namespace::BIN;

    /// A host with a loopback interface that is up, and the plugins under test.
    pub fn new(name: &str) -> Node {
        let namespace = Namespace::host(name).unwrap();
        let node = Node { namespace };
        node.run("ip link set lo up");
        for plugin in PLUGINS {
            node.install(plugin);
        }
        node
    }

    /// Installs a plugin.
    pub fn install(&self, plugin: &str) {
        self.link_plugin(&plugin_file(plugin), plugin);
    }

    /// Installs a Go plugin as `go-NAME`.
    pub fn install_go_plugin(&self, plugin: &str) {
        self.install_go_plugin_of(&go_plugins(), plugin);
    }

    /// Installs a plugin of a directory of Go plugins as `go-NAME`.
    pub fn install_go_plugin_of(&self, directory: &Path, plugin: &str) {
        self.link_plugin(&directory.join(plugin), &format!("go-{plugin}"));
    }

    /// The directory of the plugin installed as `go-NAME`.
    pub fn go_plugin_directory(&self, plugin: &str) -> String {
        let link = format!("{}/go-{plugin}", Node::BIN);
        let file = self.inside(|| fs::read_link(link)).unwrap();
        let directory = file.parent().expect("a file in a directory");
        directory.to_string_lossy().into_owned()
    }

    /// Replaces an installed plugin with another file.
    pub fn replace_plugin(&self, plugin: &str, file: &Path) {
        let link = format!("{}/{plugin}", Node::BIN);
        let removed = self.inside(|| fs::remove_file(&link));
        assert!(
            removed.is_ok() || !PLUGINS.contains(&plugin),
            "{link}: {removed:?}"
        );
        self.link_plugin(file, plugin);
    }

    fn link_plugin(&self, file: &Path, name: &str) {
        self.inside(|| std::os::unix::fs::symlink(file, format!("{}/{name}", Node::BIN)))
            .unwrap();
    }

    /// Replaces a program with a shell script, on this node only.
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

    /// Bind-mounts a file over another, on this node only.
    pub fn bind(&self, file: &str, over: &str) {
        self.inside(|| {
            let over = fs::canonicalize(over).unwrap();
            let none: Option<&str> = None;
            mount(Some(file), &over, none, MsFlags::MS_BIND, none).unwrap();
        });
    }

    /// Makes a variant, `xtables-nft-multi` or `xtables-legacy-multi`, the default iptables of this node.
    pub fn use_iptables_variant(&self, variant: &str) {
        // The programs are links to one file, which only evaluates argv[0].
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

    /// Undoes the last [`Node::bind`] over a file.
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

    /// Waits until the kernel has deleted the links of ended namespaces, which it does asynchronously.
    pub fn wait_until_veths_are_deleted(&self) {
        for _ in 0..200 {
            if !self.run("ip -o link").contains("veth") {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{}", self.run("ip -o link"));
    }

    pub fn cni(&self, plugin: &str) -> Call<'_> {
        Call::new(self, plugin)
    }

    pub fn network(&self, config: impl Into<Value>) -> Network<'_> {
        Network::new(self, config.into())
    }

    /// A list of plugins; see [`Chain`].
    pub fn chain(&self, list: &Value) -> Chain<'_> {
        Chain::new(self, list)
    }

    pub fn network_from(&self, text: &str) -> Network<'_> {
        Network::new(self, serde_json::from_str(text).unwrap())
    }
}

/// A network namespace with a loopback interface that is down.
pub struct Pod {
    namespace: Namespace,
    /// The path for CNI_NETNS.
    pub path: String,
}

impl Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Pod {
    /// The name, which is also the container ID.
    pub fn id(&self) -> &str {
        &self.name
    }

    /// Deletes the namespace and its path.
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

/// Connects two nodes with a veth pair: `connect(&a, "eth0", &b, "eth1")`. Both ends are up.
pub fn connect(one: &Node, one_link: &str, other: &Node, other_link: &str) {
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
