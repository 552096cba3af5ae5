//! How runtimes find the version of a plugin and the names under which they install it.

use serde_json::{Value, json};

use crate::implementation::Implementation::{self, Gangplank, Go};
use crate::implementation::{node, ready};
use crate::support::{Answer, Network, Node, requires, small_network};

const PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];

/// What a plugin prints without CNI_COMMAND.
fn about(node: &Node, program: &str) -> Answer {
    node.cni(program).unset("CNI_PATH").run()
}

/// The numbers of a semantic version, without build metadata and pre-release.
fn semantic(token: &str) -> Option<[u32; 3]> {
    let core = token.strip_prefix('v').unwrap_or(token);
    let core = core.split(['-', '+']).next()?;
    let numbers: Vec<u32> = core
        .split('.')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    numbers.try_into().ok()
}

/// The version as Nomad reads it: the first word of stdout and stderr that is a semantic version. The exit code must be
/// 0 (hashicorp/nomad, client/fingerprint/plugins_cni.go).
fn version_for_nomad(answer: &Answer) -> Option<[u32; 3]> {
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let output = format!("{}{}", answer.stdout, answer.stderr);
    output.split_whitespace().find_map(semantic)
}

/// The version as nerdctl reads it: after `CNI firewall plugin v` at the beginning of a line of stderr
/// (containerd/nerdctl, pkg/netutil/netutil_unix.go).
fn version_for_nerdctl(answer: &Answer, plugin: &str) -> Option<[u32; 3]> {
    let prefix = format!("CNI {plugin} plugin v");
    let mut lines = answer.stderr.lines();
    lines.find_map(|line| semantic(line.strip_prefix(&prefix)?))
}

#[test]
fn nomad_and_nerdctl_find_the_version_of_the_equivalent_go_release() {
    requires!();
    let node = Node::new("node");
    let own = concat!("v1.9.1+gangplank.", env!("CARGO_PKG_VERSION"));
    for plugin in PLUGINS {
        let answer = about(&node, plugin);
        let version = version_for_nomad(&answer);
        assert_eq!(version, version_for_nerdctl(&answer, plugin), "{answer:?}");
        // Nomad requires 0.4.0 for bridge mode and 1.3.0 for CHECK, nerdctl requires 1.7.1 of firewall.
        assert!(version >= Some([1, 7, 1]), "{answer:?}");
        assert_eq!(
            answer.stderr.lines().next(),
            Some(&*format!("CNI {plugin} plugin {own}"))
        );
    }
}

#[test]
fn the_version_text_has_the_same_lines_as_that_of_the_go_plugin() {
    if !ready(&[]) {
        return;
    }
    let node = node();
    for plugin in PLUGINS {
        let call = |implementation: Implementation| {
            let call = implementation
                .call(&node, plugin)
                .stdin("junk")
                .env("CNI_COMMAND", "");
            let answer = call.run();
            assert_eq!(
                (answer.code, answer.stdout.as_str()),
                (Some(0), ""),
                "{answer:?}"
            );
            let lines: Vec<String> = answer.stderr.lines().map(str::to_owned).collect();
            assert!(
                lines[0].starts_with(&format!("CNI {plugin} plugin v")),
                "{lines:?}"
            );
            assert_eq!(lines.len(), 2, "{lines:?}");
            lines[1].clone()
        };
        let (gangplank, go) = (call(Gangplank), call(Go));
        // Debian's plugins are older and support fewer versions.
        assert!(gangplank.starts_with(&go), "{gangplank} and {go}");
    }
}

/// Installs the gangplank binary under another name.
fn install_as(node: &Node, install_as: &str) {
    node.run(&format!(
        "ln -s {} {}/{install_as}",
        crate::support::binary().display(),
        Node::BIN
    ));
}

#[test]
fn a_plugin_name_may_have_a_prefix() {
    requires!();
    let node = Node::new("node");
    for (program, plugin) in [
        ("buildkit-cni-bridge", "bridge"),
        ("buildkit-cni-host-local", "host-local"),
        ("buildkit-cni-loopback", "loopback"),
        ("cnv-bridge", "bridge"),
        ("foo-host-local", "host-local"),
        ("gangplank-bridge", "bridge"),
        ("bridge-loopback", "loopback"),
    ] {
        install_as(&node, program);
        let answer = about(&node, program);
        assert!(
            answer.stderr.starts_with(&format!("CNI {plugin} plugin v")),
            "{program}: {answer:?}"
        );
        let answer = node.cni(program).verb("VERSION").run().ok();
        assert_eq!(answer["cniVersion"], "1.1.0", "{program}");
    }
}

/// The configuration of BuildKit's bridge, whose plugins have a prefix, the IPAM plugin included (moby/buildkit,
/// util/network/cniprovider/bridge.go).
fn buildkit() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "buildkit", "type": "buildkit-cni-bridge", "bridge": "buildkit0",
        "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true,
        "ipam": { "type": "buildkit-cni-host-local", "ranges": [[{ "subnet": "10.10.0.0/16", "gateway": "10.10.0.1" }]] },
    })
}

#[test]
fn plugins_work_under_the_names_used_by_buildkit_and_kubevirt() {
    if !ready(&["ping"]) {
        return;
    }
    for implementation in [Gangplank, Go] {
        let node = Node::new("node");
        let file = |plugin: &str| match implementation {
            Gangplank => crate::support::binary(),
            Go => crate::support::go_plugins().join(plugin),
        };
        for (program, plugin) in [
            ("buildkit-cni-bridge", "bridge"),
            ("buildkit-cni-host-local", "host-local"),
            ("cnv-bridge", "bridge"),
        ] {
            node.run(&format!(
                "ln -s {} {}/{program}",
                file(plugin).display(),
                Node::BIN
            ));
        }
        let mut kubevirt = small_network();
        kubevirt["type"] = "cnv-bridge".into();
        for (config, gateway) in [(buildkit(), "10.10.0.1"), (kubevirt, "10.77.0.1")] {
            let (network, pod) = (
                node.network(config.clone()),
                node.pod(config["name"].as_str().unwrap()),
            );
            let mut result = network.add(&pod);
            pod.reaches(gateway);
            network.check(&pod, &result).ok();
            network.del(&pod);
            let host = Network::host_link(&result.take());
            assert!(node.link(&host).is_none(), "{implementation:?}");
            assert!(
                crate::support::leases(&node, config["name"].as_str().unwrap()).is_empty(),
                "{implementation:?}"
            );
        }
    }
}

#[test]
fn an_unknown_plugin_name_is_rejected_without_any_change() {
    requires!();
    let node = Node::new("node");
    let pod = node.pod("a");
    for program in [
        "bridge.orig",
        "bridge.orig.1",
        "bridge-1.9",
        "bridge2",
        "BRIDGE",
        "Bridge",
        "xbridge",
        "macvlan",
        "hostlocal",
        "local",
        "gangplank-0.1.0",
        "gangplank-linux-x86_64",
        "gangplank.new",
        "exe",
    ] {
        install_as(&node, program);
        let mut config = small_network();
        config["type"] = program.into();
        for verb in ["ADD", "DEL", "VERSION", "STATUS"] {
            let error = node.network(config.clone()).call(verb, &pod).run().error();
            assert_eq!(error.code, 4, "{program} {verb}: {error:?}");
            for word in [program, "bridge, host-local, loopback"] {
                assert!(error.text().contains(word), "{program} {verb}: {error:?}");
            }
        }
        let answer = about(&node, program);
        let text = match program.starts_with("gangplank") {
            // A copy of the command line, which prints its usage without arguments.
            true => "Usage: gangplank",
            false => "is not the name of a plugin",
        };
        assert!(
            answer.code != Some(0) && answer.stderr.contains(text),
            "{program}: {answer:?}"
        );
        assert!(version_line(&answer).is_none(), "{program}: {answer:?}");
    }
    assert!(node.link("br0").is_none() && node.files("/var/lib/cni").is_empty());
}

/// A line of stderr that looks like the version of a plugin.
fn version_line(answer: &Answer) -> Option<&str> {
    answer.stderr.lines().find(|line| line.starts_with("CNI "))
}

#[test]
fn the_name_gangplank_is_the_bridge_plugin_for_a_runtime() {
    requires!("ping");
    let node = Node::new("node");
    install_as(&node, "gangplank");
    let mut config = small_network();
    config["type"] = "gangplank".into();
    let (network, pod) = (node.network(config), node.pod("a"));
    network.add(&pod);
    pod.reaches("10.77.0.1");
    network.del(&pod);
    assert!(
        about(&node, "gangplank")
            .stderr
            .contains("Usage: gangplank")
    );
}
