//! `gangplank status`.

use serde_json::{Value, json};

use crate::fixture::{CACHE, CONF, Fixture, LEASES, directory_flags};
use crate::support::{Network, binary, chain_of, requires, small_network};

fn dual() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }],
    ] });
    config
}

/// The line of a table that contains this text.
#[track_caller]
fn line<'a>(text: &'a str, words: &str) -> &'a str {
    let line = text.lines().find(|line| line.contains(words));
    line.unwrap_or_else(|| panic!("no line with {words:?} in\n{text}"))
}

#[test]
fn pods_of_both_implementations_are_shown() {
    requires!("ping", "iptables", "cni:bridge", "cni:host-local");
    let config = dual();
    let fixture = Fixture::with(&config);
    let (gangplank_pod, go_pod) = (fixture.pod("ours"), fixture.pod("theirs"));
    let network = fixture.network(config.clone());
    fixture.run_pod(&network, &gangplank_pod);
    let go = fixture.go(&config);
    let result = fixture.run_pod(&go, &go_pod);
    gangplank_pod.reaches("10.77.0.1");
    go_pod.reaches("10.77.0.1");
    let status = fixture.status("--json").ok();
    let [net] = &status.as_array().unwrap()[..] else {
        panic!("{status}")
    };
    assert_eq!(net["name"], "small");
    assert_eq!(net["file"], format!("{CONF}/10-net.conflist"));
    assert_eq!(net["bridge"]["state"], "up");
    assert_eq!(net["bridge"]["ports"], 2);
    assert_eq!(
        net["bridge"]["addresses"],
        json!(["10.77.0.1/24", "fd77::1/64"])
    );
    assert_eq!(net["masquerade"], json!(["iptables"]));
    assert_eq!(net["ranges"][0]["used"], 2);
    assert_eq!(net["ranges"][0]["size"], "253");
    assert_eq!(net["otherPorts"], json!([]));
    for (at, pod) in [&gangplank_pod, &go_pod].into_iter().enumerate() {
        let shown = &net["pods"][at];
        assert_eq!(shown["name"], format!("shop/{}-0", pod.id()));
        assert_eq!(shown["container"], pod.id());
        assert_eq!(shown["interface"], "eth0");
        assert_eq!(shown["addresses"].as_array().unwrap().len(), 2);
        assert_eq!(shown["mac"], pod.link("eth0").unwrap()["address"]);
        assert_eq!(shown["health"], json!([]));
    }
    assert_eq!(net["pods"][1]["veth"], Network::host_link(&result));
    let text = fixture.status("");
    let text = text.success();
    assert!(line(text, "small").contains("10-net.conflist"), "{text}");
    assert!(
        line(text, "  bridge").contains("br0 up, 10.77.0.1/24 fd77::1/64, MTU 1500, 2 ports"),
        "{text}"
    );
    for pod in ["shop/ours-0", "shop/theirs-0"] {
        assert!(line(text, pod).ends_with("ok"), "{text}");
    }
}

#[test]
fn traffic_is_counted_from_the_view_of_the_pod() {
    requires!("ping");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config);
    let (a, b) = (fixture.pod("a"), fixture.pod("b"));
    network.add(&a);
    let to = Network::address(&network.add(&b));
    let counted = |fixture: &Fixture| {
        let status = fixture.status("--json").ok();
        let pod = &status[0]["pods"][0];
        ["sentBytes", "receivedBytes"].map(|key| pod[key].as_u64().unwrap())
    };
    let before = counted(&fixture);
    // No listener: the replies are short.
    let socket = a.socket("0.0.0.0".parse().unwrap()).unwrap();
    for _ in 0..20 {
        let _ = socket.send_to(&[0; 1400], (&*to, 9));
    }
    let after = counted(&fixture);
    let [sent, received] = [after[0] - before[0], after[1] - before[1]];
    assert!(sent >= 20 * 1400, "{sent}");
    assert!(received < sent / 2, "{received} of {sent}");
}

#[test]
fn problems_of_pods_are_shown() {
    requires!("iptables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config);
    let names = ["down", "loose", "bare", "large", "gone", "lost"];
    let pods = names.map(|name| fixture.pod(name));
    let veths: Vec<String> = pods
        .iter()
        .map(|pod| Network::host_link(&fixture.run_pod(&network, pod)))
        .collect();
    fixture.run(&format!("ip link set {} down", veths[0]));
    fixture.run(&format!("ip link set {} nomaster", veths[1]));
    let chain = chain_of("small", "bare");
    fixture.run(&format!("iptables -t nat -F {chain}"));
    // A bridge has the smallest MTU of its ports.
    fixture.run(&format!("ip link set {} mtu 1600", veths[3]));
    fixture.run(&format!("ip link del {}", veths[4]));
    fixture.run(&format!("rm {LEASES}/small/10.77.0.7"));
    let status = fixture.status("--json").ok();
    let health = |name: &str| {
        let pods = status[0]["pods"].as_array().unwrap();
        pods.iter().find(|pod| pod["container"] == name).unwrap()["health"].clone()
    };
    assert_eq!(health("down"), json!(["link down"]));
    assert_eq!(health("loose"), json!(["not on the bridge"]));
    assert_eq!(health("bare"), json!(["not masqueraded as configured"]));
    assert_eq!(health("large"), json!(["other MTU"]));
    assert_eq!(health("gone"), json!(["no link"]));
    assert_eq!(health("lost"), json!(["no lease"]));
    let text = fixture.status("small");
    assert!(
        line(text.success(), "shop/gone-0").ends_with("no link"),
        "{text:?}"
    );
}

#[test]
fn a_pod_of_the_go_plugin_without_a_cache_entry_has_an_unknown_link() {
    requires!("cni:bridge", "cni:host-local");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("quiet");
    fixture.go(&config).add(&pod);
    let status = fixture.status("--json").ok();
    let shown = &status[0]["pods"][0];
    assert_eq!(shown["health"], json!(["link unknown"]), "{status}");
    assert_eq!(shown["addresses"], json!(["10.77.0.2/24"]));
    assert_eq!(status[0]["otherPorts"].as_array().unwrap().len(), 1);
}

#[test]
fn colors_are_used_on_a_terminal_or_on_request() {
    requires!("script");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    fixture.network(config).add(&pod);
    assert!(!fixture.status("").success().contains('\x1b'));
    assert!(!fixture.status("--color never").success().contains('\x1b'));
    assert!(
        fixture
            .status("--color always")
            .success()
            .contains("\x1b[32mup\x1b[0m")
    );
    for (set, coloured) in [
        ("-u NO_COLOR", true),
        ("NO_COLOR=1", false),
        ("NO_COLOR=", true),
    ] {
        let program = binary();
        let look = format!(
            "env {set} {} status {}",
            program.display(),
            directory_flags()
        );
        fixture.write(
            "/run/look",
            &format!("script --quiet --return --command '{look}' /dev/null\n"),
        );
        assert_eq!(
            fixture.run("bash /run/look").contains('\x1b'),
            coloured,
            "{set}"
        );
    }
}

#[test]
fn the_mac_address_of_a_pod_without_a_cache_entry_is_read_from_the_fdb() {
    requires!("ping");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let network = fixture.network(config);
    let pods = ["a", "b"].map(|name| fixture.pod(name));
    for pod in &pods {
        network.add(pod);
        pod.reaches("10.77.0.1");
    }
    let status = fixture.status("--json").ok();
    for (at, pod) in pods.iter().enumerate() {
        assert_eq!(
            status[0]["pods"][at]["mac"],
            pod.link("eth0").unwrap()["address"]
        );
    }
    fixture.run("bridge fdb flush dev br0");
    let status = fixture.status("--json").ok();
    assert_eq!(status[0]["pods"][0].get("mac"), None, "{status}");
}

#[test]
fn an_unknown_network_is_an_error() {
    requires!();
    let fixture = Fixture::with(&small_network());
    let error = fixture.status("nope");
    let error = error.failure();
    assert!(
        error.contains("\"nope\"") && error.contains("there are: small"),
        "{error}"
    );
}

#[test]
fn a_node_without_networks_is_shown_as_empty() {
    requires!();
    let fixture = Fixture::new();
    assert_eq!(
        fixture.status("").success(),
        format!("no network with a bridge in {CONF}\n")
    );
    assert_eq!(fixture.status("--json").ok(), json!([]));
    let none = "status --conf-dir /run/none --data-dir /run/none --cache-dir /run/none";
    assert_eq!(
        fixture.gangplank(none).success(),
        "no network with a bridge in /run/none\n"
    );
    assert_eq!(fixture.reconcile("").success(), "nothing to restore\n");
}

#[test]
fn the_cache_of_cri_runtimes_is_found_by_default() {
    requires!();
    let config = small_network();
    for directory in ["results", "cache/results"] {
        let fixture = Fixture::with(&config);
        let pod = fixture.pod("a");
        fixture.run_pod(&fixture.network(config.clone()), &pod);
        fixture.run(&format!("mkdir -p /var/lib/cni/{directory}"));
        fixture.run(&format!("cp -r {CACHE}/. /var/lib/cni/{directory}"));
        let status = fixture
            .gangplank(&format!("status --json --conf-dir {CONF}"))
            .ok();
        assert_eq!(
            status[0]["pods"][0]["name"], "shop/a-0",
            "{directory}: {status}"
        );
    }
}

#[test]
fn networks_without_ipam_and_with_other_ipam_plugins_are_shown() {
    requires!();
    let fixture = Fixture::new();
    let flat = json!({ "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br1" });
    fixture.configure("20-flat.conflist", &flat);
    let mut fixed = small_network();
    fixed["ipam"] = json!({ "type": "static", "addresses": [{ "address": "10.77.0.9/24" }] });
    fixture.configure("30-fixed.conflist", &fixed);
    let (a, b) = (fixture.pod("a"), fixture.pod("b"));
    let layer2 = fixture.network(flat);
    fixture.run_pod(&layer2, &a);
    let given = fixture.network(fixed);
    fixture.run_pod(&given, &b);
    let status = fixture.status("--json").ok();
    assert_eq!(status[0]["pods"][0]["name"], "shop/a-0", "{status}");
    assert_eq!(status[0]["pods"][0]["health"], json!([]), "{status}");
    assert_eq!(status[0]["bridge"]["addresses"], json!([]));
    assert_eq!(status[1]["ipam"], "static");
    assert_eq!(status[1]["pods"][0]["health"], json!([]), "{status}");
    assert_eq!(
        status[1]["pods"][0]["addresses"],
        json!(["10.77.0.9/24"]),
        "{status}"
    );
    let text = fixture.status("small");
    assert!(
        line(text.success(), "addresses").contains("from static"),
        "{text:?}"
    );
}

#[test]
fn invalid_files_in_cache_and_configurations_are_ignored() {
    requires!();
    let config = small_network();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    let network = fixture.network(config);
    fixture.run_pod(&network, &pod);
    for (name, text) in [
        ("empty", ""),
        ("half", "{\"kind\": \"cniCacheV1\", \"cont"),
        ("other", "{\"kind\": \"cniCacheV2\"}"),
        ("list", "[1, 2]"),
        (
            "types",
            "{\"kind\": \"cniCacheV1\", \"containerId\": 5, \"ifName\": [], \"networkName\": {}}",
        ),
        (
            "names",
            "{\"kind\": \"cniCacheV1\", \"containerId\": \"../x\", \"ifName\": \"a/b\", \"networkName\": \"small\"}",
        ),
        (
            "args",
            "{\"kind\": \"cniCacheV1\", \"containerId\": \"b\", \"ifName\": \"eth0\", \"networkName\": \"other\", \"cniArgs\": [[\"K8S_POD_NAME\"], 3, null], \"result\": 7}",
        ),
    ] {
        fixture.write(&format!("{CACHE}/{name}"), text);
    }
    fixture.run(&format!(
        "mkdir {CACHE}/directory {CONF}/50-directory.conflist"
    ));
    fixture.run(&format!("mkfifo {CACHE}/fifo {CONF}/60-fifo.conf"));
    fixture.run(&format!("ln -s /nowhere {CONF}/70-dangling.conf"));
    fixture.write(&format!("{CONF}/80-half.conf"), "{\"name\": ");
    let answer = fixture.under(&format!("timeout 20 BINARY status {}", directory_flags()));
    let text = answer.success();
    assert!(line(text, "shop/a-0").ends_with("ok"), "{text}");
    assert!(line(text, "unusable").contains("80-half.conf"), "{text}");
}

#[test]
fn pods_of_two_networks_on_one_bridge_are_shown_separately() {
    requires!();
    let fixture = Fixture::new();
    let mut other = small_network();
    other["name"] = "other".into();
    other["ipam"]["subnet"] = "10.78.0.0/24".into();
    fixture.configure("10-small.conflist", &small_network());
    fixture.configure("20-other.conflist", &other);
    let (a, b) = (fixture.pod("a"), fixture.pod("b"));
    let (one, two) = (
        fixture.network(small_network()),
        fixture.network(other).with("forceAddress", false),
    );
    fixture.run_pod(&one, &a);
    // The bridge has the gateway address of the other subnet.
    let refused = two.call("ADD", &b).run();
    let is_refused = refused.code == Some(1);
    let status = fixture.status("--json").ok();
    assert_eq!(status[0]["pods"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(
        status[1]["pods"].as_array().unwrap().len(),
        usize::from(!is_refused),
        "{status}"
    );
}

#[test]
fn missing_permissions_are_shown_to_an_unprivileged_user() {
    requires!("setpriv");
    let config = small_network();
    let fixture = Fixture::with(&config);
    let pod = fixture.pod("a");
    fixture.network(config).add(&pod);
    fixture.run(&format!("cp -L {} /run/gangplank", binary().display()));
    fixture.run("chmod 755 /run/gangplank");
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all /run/gangplank";
    let answer = fixture.under(&format!("{user} status {}", directory_flags()));
    assert!(
        answer.failure().contains("10.77.0.2: Permission denied")
            && answer.stderr.contains("run it as root"),
        "{answer:?}"
    );
    fixture.run(&format!("rm {LEASES}/small/10.77.0.2"));
    let answer = fixture.under(&format!("{user} status {}", directory_flags()));
    assert!(answer.success().contains("not seen"), "{answer:?}");
    fixture.run(&format!("chmod 700 {CONF}"));
    let answer = fixture.under(&format!("{user} status {}", directory_flags()));
    assert!(
        answer.failure().contains(&format!("cannot read {CONF}")),
        "{answer:?}"
    );
}

#[test]
fn a_closed_pipe_is_no_error() {
    requires!();
    let fixture = Fixture::with(&small_network());
    fixture.write(
        "/run/pipe",
        &format!(
            "set -o pipefail\n{} status {} | true\n",
            binary().display(),
            directory_flags()
        ),
    );
    fixture.run("bash /run/pipe");
    fixture.write(
        "/run/full",
        &format!("{} man >/dev/full\n", binary().display()),
    );
    let output = fixture.try_run("bash /run/full");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to stdout"));
}
