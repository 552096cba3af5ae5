//! `gangplank status`.

use serde_json::{Value, json};

use crate::site::{CACHE, CONF, LEASES, Site, places};
use crate::support::{Network, binary, chain_of, needs, small_network};

fn dual() -> Value {
    let mut config = small_network();
    config["ipMasq"] = true.into();
    config["ipam"] = json!({ "type": "host-local", "ranges": [
        [{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }],
    ] });
    config
}

/// The line of a table that has these words.
#[track_caller]
fn line<'a>(text: &'a str, words: &str) -> &'a str {
    let line = text.lines().find(|line| line.contains(words));
    line.unwrap_or_else(|| panic!("no line with {words:?} in\n{text}"))
}

#[test]
fn our_pods_and_those_of_go_are_shown_alike() {
    needs!("ping", "iptables", "cni:bridge", "cni:host-local");
    let config = dual();
    let site = Site::with(&config);
    let (ours, theirs) = (site.pod("ours"), site.pod("theirs"));
    let network = site.network(config.clone());
    site.run_pod(&network, &ours);
    let go = site.go(&config);
    let result = site.run_pod(&go, &theirs);
    ours.reaches("10.77.0.1");
    theirs.reaches("10.77.0.1");
    let status = site.status("--json").ok();
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
    for (at, pod) in [&ours, &theirs].into_iter().enumerate() {
        let shown = &net["pods"][at];
        assert_eq!(shown["name"], format!("shop/{}-0", pod.id()));
        assert_eq!(shown["container"], pod.id());
        assert_eq!(shown["interface"], "eth0");
        assert_eq!(shown["addresses"].as_array().unwrap().len(), 2);
        assert_eq!(shown["mac"], pod.link("eth0").unwrap()["address"]);
        assert_eq!(shown["health"], json!([]));
    }
    assert_eq!(net["pods"][1]["veth"], Network::host_link(&result));
    let text = site.status("");
    let text = text.said();
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
fn traffic_is_counted_as_the_pod_sees_it() {
    needs!("ping");
    let config = small_network();
    let site = Site::with(&config);
    let network = site.network(config);
    let (a, b) = (site.pod("a"), site.pod("b"));
    network.add(&a);
    let to = Network::address(&network.add(&b));
    let counted = |site: &Site| {
        let status = site.status("--json").ok();
        let pod = &status[0]["pods"][0];
        ["sentBytes", "receivedBytes"].map(|key| pod[key].as_u64().unwrap())
    };
    let before = counted(&site);
    // Nobody listens there: what comes back is short.
    let socket = a.socket("0.0.0.0".parse().unwrap()).unwrap();
    for _ in 0..20 {
        let _ = socket.send_to(&[0; 1400], (&*to, 9));
    }
    let after = counted(&site);
    let [sent, received] = [after[0] - before[0], after[1] - before[1]];
    assert!(sent >= 20 * 1400, "{sent}");
    assert!(received < sent / 2, "{received} of {sent}");
}

#[test]
fn what_ails_a_pod_is_said_in_words() {
    needs!("iptables");
    let mut config = small_network();
    config["ipMasq"] = true.into();
    let site = Site::with(&config);
    let network = site.network(config);
    let names = ["down", "loose", "bare", "large", "gone", "lost"];
    let pods = names.map(|name| site.pod(name));
    let veths: Vec<String> = pods
        .iter()
        .map(|pod| Network::host_link(&site.run_pod(&network, pod)))
        .collect();
    site.run(&format!("ip link set {} down", veths[0]));
    site.run(&format!("ip link set {} nomaster", veths[1]));
    let chain = chain_of("small", "bare");
    site.run(&format!("iptables -t nat -F {chain}"));
    // A bridge is as wide as its narrowest port.
    site.run(&format!("ip link set {} mtu 1600", veths[3]));
    site.run(&format!("ip link del {}", veths[4]));
    site.run(&format!("rm {LEASES}/small/10.77.0.7"));
    let status = site.status("--json").ok();
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
    let text = site.status("small");
    assert!(
        line(text.said(), "shop/gone-0").ends_with("no link"),
        "{text:?}"
    );
}

#[test]
fn a_pod_of_go_that_nobody_remembers_is_not_called_sick() {
    needs!("cni:bridge", "cni:host-local");
    let config = small_network();
    let site = Site::with(&config);
    let pod = site.pod("quiet");
    site.go(&config).add(&pod);
    let status = site.status("--json").ok();
    let shown = &status[0]["pods"][0];
    assert_eq!(shown["health"], json!(["link unknown"]), "{status}");
    assert_eq!(shown["addresses"], json!(["10.77.0.2/24"]));
    assert_eq!(status[0]["otherPorts"].as_array().unwrap().len(), 1);
}

#[test]
fn colours_come_only_when_they_are_asked_for() {
    needs!("script");
    let config = small_network();
    let site = Site::with(&config);
    let pod = site.pod("a");
    site.network(config).add(&pod);
    assert!(!site.status("").said().contains('\x1b'));
    assert!(!site.status("--color never").said().contains('\x1b'));
    assert!(
        site.status("--color always")
            .said()
            .contains("\x1b[32mup\x1b[0m")
    );
    // On a terminal, unless NO_COLOR is set.
    for (set, coloured) in [
        ("-u NO_COLOR", true),
        ("NO_COLOR=1", false),
        ("NO_COLOR=", true),
    ] {
        let program = binary();
        let look = format!("env {set} {} status {}", program.display(), places());
        site.write(
            "/run/look",
            &format!("script --quiet --return --command '{look}' /dev/null\n"),
        );
        assert_eq!(
            site.run("bash /run/look").contains('\x1b'),
            coloured,
            "{set}"
        );
    }
}

#[test]
fn the_mac_of_a_pod_that_no_runtime_remembers_is_what_the_bridge_learned() {
    needs!("ping");
    let config = small_network();
    let site = Site::with(&config);
    let network = site.network(config);
    let pods = ["a", "b"].map(|name| site.pod(name));
    for pod in &pods {
        network.add(pod);
        pod.reaches("10.77.0.1");
    }
    let status = site.status("--json").ok();
    for (at, pod) in pods.iter().enumerate() {
        assert_eq!(
            status[0]["pods"][at]["mac"],
            pod.link("eth0").unwrap()["address"]
        );
    }
    site.run("bridge fdb flush dev br0");
    let status = site.status("--json").ok();
    assert_eq!(status[0]["pods"][0].get("mac"), None, "{status}");
}

#[test]
fn a_network_that_is_not_there_is_an_error() {
    needs!();
    let site = Site::with(&small_network());
    let complaint = site.status("nope");
    let complaint = complaint.complaint();
    assert!(
        complaint.contains("\"nope\"") && complaint.contains("there are: small"),
        "{complaint}"
    );
}

#[test]
fn a_node_without_anything_is_shown_as_such() {
    needs!();
    let site = Site::new();
    assert_eq!(
        site.status("").said(),
        format!("no network with a bridge in {CONF}\n")
    );
    assert_eq!(site.status("--json").ok(), json!([]));
    let none = "status --conf-dir /run/none --data-dir /run/none --cache-dir /run/none";
    assert_eq!(
        site.gangplank(none).said(),
        "no network with a bridge in /run/none\n"
    );
    assert_eq!(site.reconcile("").said(), "nothing to restore\n");
}

#[test]
fn what_kubelet_remembers_is_found_without_being_told_where() {
    needs!();
    let config = small_network();
    for place in ["results", "cache/results"] {
        let site = Site::with(&config);
        let pod = site.pod("a");
        site.run_pod(&site.network(config.clone()), &pod);
        site.run(&format!("mkdir -p /var/lib/cni/{place}"));
        site.run(&format!("cp -r {CACHE}/. /var/lib/cni/{place}"));
        let status = site
            .gangplank(&format!("status --json --conf-dir {CONF}"))
            .ok();
        assert_eq!(
            status[0]["pods"][0]["name"], "shop/a-0",
            "{place}: {status}"
        );
    }
}

#[test]
fn networks_without_addresses_and_with_addresses_of_others_are_shown() {
    needs!("cni:static");
    let site = Site::new();
    let flat = json!({ "cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br1" });
    site.configure("20-flat.conflist", &flat);
    let mut fixed = small_network();
    fixed["ipam"] = json!({ "type": "static", "addresses": [{ "address": "10.77.0.9/24" }] });
    site.configure("30-fixed.conflist", &fixed);
    site.install("static");
    let (a, b) = (site.pod("a"), site.pod("b"));
    let layer2 = site.network(flat);
    site.run_pod(&layer2, &a);
    let given = site.network(fixed);
    site.run_pod(&given, &b);
    let status = site.status("--json").ok();
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
    let text = site.status("small");
    assert!(
        line(text.said(), "addresses").contains("from static"),
        "{text:?}"
    );
}

#[test]
fn garbage_in_the_cache_and_among_the_configurations_hides_nothing() {
    needs!();
    let config = small_network();
    let site = Site::with(&config);
    let pod = site.pod("a");
    let network = site.network(config);
    site.run_pod(&network, &pod);
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
        site.write(&format!("{CACHE}/{name}"), text);
    }
    site.run(&format!(
        "mkdir {CACHE}/directory {CONF}/50-directory.conflist"
    ));
    site.run(&format!("mkfifo {CACHE}/fifo {CONF}/60-fifo.conf"));
    site.run(&format!("ln -s /nowhere {CONF}/70-dangling.conf"));
    site.write(&format!("{CONF}/80-half.conf"), "{\"name\": ");
    let answer = site.under(&format!("timeout 20 BINARY status {}", places()));
    let text = answer.said();
    assert!(line(text, "shop/a-0").ends_with("ok"), "{text}");
    assert!(line(text, "unusable").contains("80-half.conf"), "{text}");
}

#[test]
fn two_networks_on_one_bridge_keep_their_pods_apart() {
    needs!();
    let site = Site::new();
    let mut other = small_network();
    other["name"] = "other".into();
    other["ipam"]["subnet"] = "10.78.0.0/24".into();
    site.configure("10-small.conflist", &small_network());
    site.configure("20-other.conflist", &other);
    let (a, b) = (site.pod("a"), site.pod("b"));
    let (one, two) = (
        site.network(small_network()),
        site.network(other).with("forceAddress", false),
    );
    site.run_pod(&one, &a);
    // The bridge has the address of the other subnet.
    let refused = two.call("ADD", &b).run();
    let is_refused = refused.code == Some(1);
    let status = site.status("--json").ok();
    assert_eq!(status[0]["pods"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(
        status[1]["pods"].as_array().unwrap().len(),
        usize::from(!is_refused),
        "{status}"
    );
}

#[test]
fn an_ordinary_user_is_told_what_cannot_be_seen() {
    needs!("setpriv");
    let config = small_network();
    let site = Site::with(&config);
    let pod = site.pod("a");
    site.network(config).add(&pod);
    site.run(&format!("cp -L {} /run/gangplank", binary().display()));
    site.run("chmod 755 /run/gangplank");
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all /run/gangplank";
    let answer = site.under(&format!("{user} status {}", places()));
    assert!(
        answer.complaint().contains("10.77.0.2: Permission denied")
            && answer.stderr.contains("run it as root"),
        "{answer:?}"
    );
    site.run(&format!("rm {LEASES}/small/10.77.0.2"));
    let answer = site.under(&format!("{user} status {}", places()));
    assert!(answer.said().contains("not seen"), "{answer:?}");
    site.run(&format!("chmod 700 {CONF}"));
    let answer = site.under(&format!("{user} status {}", places()));
    assert!(
        answer.complaint().contains(&format!("cannot read {CONF}")),
        "{answer:?}"
    );
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    needs!();
    let site = Site::with(&small_network());
    site.write(
        "/run/pipe",
        &format!(
            "set -o pipefail\n{} status {} | true\n",
            binary().display(),
            places()
        ),
    );
    site.run("bash /run/pipe");
    site.write(
        "/run/full",
        &format!("{} man >/dev/full\n", binary().display()),
    );
    let output = site.try_run("bash /run/full");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to stdout"));
}
