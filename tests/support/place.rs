//! A point of view: a network namespace together with the mount namespace of its host.

use std::fs::File;
use std::net::UdpSocket;
use std::panic::resume_unwind;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use super::command;

/// Where programs and closures can be run. Several may run in one place at the same time.
#[derive(Clone)]
pub struct Place {
    pub(super) name: String,
    pub(super) netns: Arc<File>,
    pub(super) mntns: Arc<File>,
}

/// The answer to an echo request.
#[derive(Debug, PartialEq, Eq)]
pub struct Ping {
    /// Its time to live (hop limit): 64 less one for each router on its way.
    pub ttl: u8,
}

/// Runs `work` on a thread of its own, so that what it does to its namespaces ends with it.
pub(super) fn apart<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let outcome = std::thread::scope(|scope| scope.spawn(work).join());
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

impl Place {
    /// Runs a closure here.
    pub fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        apart(|| {
            // The kernel lets only a task with a root and a working directory of its own change mount namespaces.
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&*self.mntns, CloneFlags::CLONE_NEWNS).unwrap();
            setns(&*self.netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Runs a program here, whatever comes of it.
    pub fn try_run(&self, line: &str) -> Output {
        self.inside(|| command(line).stdin(Stdio::null()).output())
            .unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Runs a program here that must succeed; what it printed.
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

    /// Runs several programs, one a line.
    pub fn run_all(&self, lines: &str) {
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            self.run(line);
        }
    }

    /// Sends an echo request, or two if the first one gets no answer.
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

    /// Fails unless an echo request is answered; the answer's time to live.
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

    /// Fails when an echo request is answered.
    pub fn does_not_reach(&self, address: &str) {
        let answer = self.ping_once(address, "0.4");
        assert_eq!(answer, None, "{} reaches {address}", self.name);
    }

    /// A socket that lives here, whichever thread uses it; it waits two seconds for a packet.
    pub fn udp(&self, address: &str) -> UdpSocket {
        let socket = self
            .inside(|| UdpSocket::bind(address))
            .unwrap_or_else(|e| panic!("{}: {address}: {e}", self.name));
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        socket
    }

    /// The source address as which a packet sent from here arrives at `to`, an address at `place`.
    pub fn seen_as(&self, place: &Place, to: &str) -> String {
        let any = if to.contains(':') { "[::]" } else { "0.0.0.0" };
        let host = if to.contains(':') {
            format!("[{to}]")
        } else {
            to.to_owned()
        };
        let receiver = place.udp(&format!("{host}:0"));
        let port = receiver.local_addr().unwrap().port();
        let sender = self.udp(&format!("{any}:0"));
        sender.send_to(b"who am I", (to, port)).unwrap();
        let mut buffer = [0; 16];
        let (_, from) = receiver
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("no packet from {} at {to}: {e}", self.name));
        from.ip().to_string()
    }

    /// The text of a file.
    pub fn read(&self, path: &str) -> String {
        self.inside(|| std::fs::read_to_string(path))
            .unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Writes a file.
    pub fn write(&self, path: &str, text: &str) {
        self.inside(|| std::fs::write(path, text))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// What `ip -d -j link show` says about an interface; `None` when there is none.
    pub fn link(&self, name: &str) -> Option<serde_json::Value> {
        let output = self.try_run(&format!("ip -d -j link show dev {name}"));
        let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).ok()?;
        list.into_iter().next()
    }

    /// The addresses of an interface with their prefix lengths, without those that the kernel makes itself.
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
