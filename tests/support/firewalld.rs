//! firewalld and its message bus, on one node.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Node, PATH, command, debian, note, require};

/// Of the firewalld of Debian 12. Its Python modules work with later versions of Python too.
const PACKAGES: [&str; 3] = ["firewalld", "python3-firewall", "python3-nftables"];

/// Modules of Python that firewalld needs, with their packages. They are not unpacked, because they are built for one
/// version of Python.
const MODULES: [(&str, &str); 2] = [("dbus", "python3-dbus"), ("gi", "python3-gi")];

/// Permits everything: the bus is only reachable from the node.
const BUS: &str = r#"<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/>
    <allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

const NAME: &str = "org.fedoraproject.FirewallD1";

/// Whether firewalld can run on a node: the directory of its unpacked packages. Prints the reason if it cannot, and panics
/// if the variable `CI` is set.
pub fn ready() -> Option<std::path::PathBuf> {
    if !require(&["dbus-daemon", "dbus-send", "python3", "nft"]) {
        return None;
    }
    for (module, package) in MODULES {
        if !Path::new("/usr/lib/python3/dist-packages")
            .join(module)
            .exists()
        {
            let why = format!("cannot run: missing the package {package}");
            assert!(std::env::var_os("CI").is_none(), "{why}");
            note(&why);
            return None;
        }
    }
    debian("bookworm", &PACKAGES)
}

/// A message bus, and firewalld while it runs. Both end when it is dropped.
pub struct Firewalld<'n> {
    node: &'n Node,
    bus: Child,
    daemon: Option<Child>,
}

impl<'n> Firewalld<'n> {
    /// The message bus alone.
    pub fn bus(node: &'n Node) -> Firewalld<'n> {
        node.write("/run/bus.conf", BUS);
        node.run("mkdir -p /run/dbus");
        let mut bus = command("dbus-daemon --nofork --nopidfile --config-file=/run/bus.conf");
        let bus = node.inside(|| bus.stderr(Stdio::null()).spawn().unwrap());
        let firewalld = Firewalld {
            node,
            bus,
            daemon: None,
        };
        firewalld.wait_until(|| node.inside(|| Path::new("/run/dbus/system_bus_socket").exists()));
        firewalld
    }

    /// Starts the firewalld of the unpacked packages. It owns its name before it answers, and flushes the tables of
    /// iptables in between.
    pub fn start(&mut self, packages: &Path) {
        let dir = packages.display();
        self.node
            .run(&format!("cp -r {dir}/etc/firewalld /run/firewalld.d"));
        let mut daemon = Command::new("/usr/bin/python3");
        daemon
            .arg(packages.join("usr/sbin/firewalld"))
            .args(["--nofork", "--nopid", "--system-config", "/run/firewalld.d"])
            .args(["--log-file", "/run/firewalld.log", "--default-config"])
            .arg(packages.join("usr/lib/firewalld"))
            .env("PYTHONPATH", packages.join("usr/lib/python3/dist-packages"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PATH", PATH)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.daemon = Some(self.node.inside(|| daemon.spawn().unwrap()));
        self.wait_until(|| self.is_running());
    }

    /// Waits until firewalld answers.
    pub fn wait_until_started(&self) {
        let answer = self.zone_call("getZones");
        assert!(answer.contains("trusted"), "{answer}");
    }

    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("running");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        self.wait_until(|| !self.is_running());
    }

    /// Stops the execution of the message bus.
    pub fn hang(&self) {
        self.node.run(&format!("kill -STOP {}", self.bus.id()));
    }

    fn is_running(&self) -> bool {
        let bus = "org.freedesktop.DBus";
        let object = "/org/freedesktop/DBus";
        let answer = self.send(bus, object, &format!("{bus}.NameHasOwner string:{NAME}"));
        answer.contains("true")
    }

    /// The zone of an address, or an empty text.
    pub fn zone_of(&self, source: &str) -> String {
        let answer = self.zone_call(&format!("getZoneOfSource string:{source}"));
        let text = answer.split('"').nth(1);
        text.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Calls a method of firewalld's zones.
    pub fn zone_call(&self, call: &str) -> String {
        self.send(
            NAME,
            "/org/fedoraproject/FirewallD1",
            &format!("{NAME}.zone.{call}"),
        )
    }

    fn send(&self, destination: &str, object: &str, call: &str) -> String {
        let line = format!("dbus-send --system --print-reply --dest={destination} {object} {call}");
        let output = self.node.inside(|| command(&line).output().unwrap());
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn wait_until(&self, is_so: impl Fn() -> bool) {
        for _ in 0..400 {
            if is_so() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{}", self.node.run("cat /run/firewalld.log"));
    }
}

impl Drop for Firewalld<'_> {
    fn drop(&mut self) {
        for child in self.daemon.iter_mut().chain([&mut self.bus]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
