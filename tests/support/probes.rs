//! Commands and packets from a namespace.

use std::process::{Output, Stdio};

use super::command;
pub use super::namespace::Namespace;

/// An echo reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Ping {
    /// TTL or hop limit: 64 minus the number of routers.
    pub ttl: u8,
}

impl Namespace {
    /// Runs a program, which may fail.
    pub fn try_run(&self, line: &str) -> Output {
        self.inside(|| command(line).stdin(Stdio::null()).output())
            .unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Runs a program, which must succeed. Returns stdout.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "on {}: {line}: {}\n{stdout}{stderr}",
            self.name,
            output.status
        );
        stdout
    }

    /// Runs several programs, one per line.
    pub fn run_all(&self, lines: &str) {
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            self.run(line);
        }
    }

    /// Waits for duplicate address detection, a second or two after a link came up. Before that the kernel sends no
    /// neighbour solicitations for forwarded packets (`ndisc_send_ns`, net/ipv6/ndisc.c).
    pub fn wait_for_dad(&self) {
        for _ in 0..100 {
            if self.run("ip -6 addr show tentative").is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{}: {}", self.name, self.run("ip -6 addr"));
    }

    /// Sends an echo request, and a second one if there is no reply.
    pub fn ping(&self, address: &str) -> Option<Ping> {
        (0..2).find_map(|_| self.ping_once(address, "1"))
    }

    fn ping_once(&self, address: &str, seconds: &str) -> Option<Ping> {
        let output = self.try_run(&format!("ping -n -c 1 -W {seconds} {address}"));
        let text = String::from_utf8_lossy(&output.stdout);
        let (_, after) = text.split_once("ttl=")?;
        let ttl = after.split_whitespace().next()?.parse().ok()?;
        Some(Ping { ttl })
    }

    /// Asserts that an address is reachable. Returns the TTL of the reply.
    pub fn reaches(&self, address: &str) -> u8 {
        let Some(ping) = self.ping(address) else {
            let facts = [
                "ip addr",
                "ip route show table all",
                "ip -6 route",
                "ip neigh",
            ];
            let facts: String = facts.iter().map(|fact| self.run(fact)).collect();
            panic!("{} does not reach {address}:\n{facts}", self.name);
        };
        ping.ttl
    }

    /// Asserts that an address is not reachable.
    pub fn does_not_reach(&self, address: &str) {
        let answer = self.ping_once(address, "0.4");
        assert_eq!(answer, None, "{} reaches {address}", self.name);
    }

    /// The source address with which a packet from this namespace arrives at `to`, an address in the namespace `peer`.
    pub fn seen_as(&self, peer: &Namespace, to: &str) -> String {
        let exchange = self
            .exchange(peer, to.parse().unwrap())
            .unwrap_or_else(|e| panic!("no packet from {} to {to}, or no answer: {e}", self.name));
        exchange.seen_as.to_string()
    }

    pub fn read(&self, path: &str) -> String {
        self.inside(|| std::fs::read_to_string(path))
            .unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub fn write(&self, path: &str, text: &str) {
        self.inside(|| std::fs::write(path, text))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// Writes a file with mode 0755.
    pub fn write_executable(&self, path: &str, text: &str) {
        self.write(path, text);
        self.run(&format!("chmod 755 {path}"));
    }

    /// The output of `ip -d -j link show`; `None` if the interface does not exist.
    pub fn link(&self, name: &str) -> Option<serde_json::Value> {
        let output = self.try_run(&format!("ip -d -j link show dev {name}"));
        let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).ok()?;
        list.into_iter().next()
    }

    /// The addresses of an interface with their prefix lengths, without link-local ones.
    pub fn addresses(&self, link: &str) -> Vec<String> {
        let text = self.run(&format!("ip -o addr show dev {link}"));
        let mut addresses: Vec<String> = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3))
            .filter(|address| !address.starts_with("fe80:"))
            .map(str::to_owned)
            .collect();
        addresses.sort();
        addresses
    }
}
