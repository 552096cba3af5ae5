//! Flows of packets between namespaces, measured where they arrive.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::{Namespace, Protocol};

/// The interval in which arriving bytes are counted.
const INTERVAL: Duration = Duration::from_millis(50);

/// What arrived of a flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The bytes of packets in each interval, with their headers.
    intervals: Vec<u64>,
}

impl Flow {
    /// Bits per second between two times after the start of the flow.
    pub fn rate(&self, from: Duration, to: Duration) -> f64 {
        let index = |time: Duration| (time.as_micros() / INTERVAL.as_micros()) as usize;
        let bytes: u64 = self.intervals[index(from)..index(to)].iter().sum();
        bytes as f64 * 8.0 / (to - from).as_secs_f64()
    }

    /// Bits per second without the start of the flow.
    pub fn steady_rate(&self) -> f64 {
        let all = INTERVAL * self.intervals.len() as u32;
        self.rate(all / 2, all)
    }
}

/// Ethernet, IPv4 and TCP headers with timestamps.
const TCP_HEADERS: u64 = 14 + 20 + 32;
const UDP_HEADERS: u64 = 14 + 20 + 8;

/// The payload of one packet with an MTU of 1500.
const TCP_PAYLOAD: u64 = 1500 + 14 - TCP_HEADERS;
const UDP_PAYLOAD: usize = (1500 + 14 - UDP_HEADERS) as usize;

impl Namespace {
    /// Sends as much as possible to an address of another namespace for some time.
    pub fn flow(
        &self,
        protocol: Protocol,
        to: (&Namespace, SocketAddr),
        duration: Duration,
    ) -> Flow {
        let (receiver, address) = to;
        match protocol {
            Protocol::Tcp => {
                let listener = receiver.inside(|| TcpListener::bind(address)).unwrap();
                let stream = self.inside(|| TcpStream::connect(address)).unwrap();
                let (mut arriving, _) = listener.accept().unwrap();
                arriving.set_read_timeout(Some(INTERVAL / 10)).unwrap();
                let mut buffer = vec![0; 1 << 18];
                let read = || arriving.read(&mut buffer).map(|read| read as u64);
                let scale = |bytes| bytes * (TCP_PAYLOAD + TCP_HEADERS) / TCP_PAYLOAD;
                std::thread::scope(|scope| {
                    scope.spawn(|| write(&stream, duration));
                    let flow = count(duration, scale, read);
                    // Otherwise the sender waits until its data is acknowledged.
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                    flow
                })
            }
            Protocol::Udp => {
                let arriving = receiver.inside(|| UdpSocket::bind(address)).unwrap();
                arriving.set_read_timeout(Some(INTERVAL / 10)).unwrap();
                let socket = self.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
                self.inside(|| socket.connect(address)).unwrap();
                let mut buffer = [0; 2048];
                let read = || {
                    arriving
                        .recv(&mut buffer)
                        .map(|read| read as u64 + UDP_HEADERS)
                };
                std::thread::scope(|scope| {
                    scope.spawn(|| flood(&socket, duration));
                    count(duration, |bytes| bytes, read)
                })
            }
        }
    }
}

fn write(mut stream: &TcpStream, duration: Duration) {
    let data = vec![0; 1 << 17];
    let end = Instant::now() + duration;
    while Instant::now() < end && stream.write_all(&data).is_ok() {}
}

fn flood(socket: &UdpSocket, duration: Duration) {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        // ENOBUFS if the queue is full.
        let _ = socket.send(&[0; UDP_PAYLOAD]);
    }
}

fn count(
    duration: Duration,
    scale: impl Fn(u64) -> u64,
    mut read: impl FnMut() -> std::io::Result<u64>,
) -> Flow {
    let start = Instant::now();
    let mut intervals = vec![0; (duration.as_micros() / INTERVAL.as_micros()) as usize];
    loop {
        let arrived = match read() {
            Ok(bytes) => bytes,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => 0,
            Err(_) => 0,
        };
        let index = (start.elapsed().as_micros() / INTERVAL.as_micros()) as usize;
        match intervals.get_mut(index) {
            Some(interval) => *interval += scale(arrived),
            None => return Flow { intervals },
        }
    }
}

/// Round trips.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrips {
    pub average: Duration,
    pub longest: Duration,
    /// In percent.
    pub lost: f64,
}

impl Namespace {
    /// Sends an echo request to an address every 10 ms.
    pub fn round_trips(&self, address: &str, count: u32) -> RoundTrips {
        let output = self.try_run(&format!("ping -q -n -i 0.01 -W 1 -c {count} {address}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lost = text.split("% packet loss").next().unwrap();
        let lost = lost.rsplit(' ').next().unwrap().parse().unwrap_or(100.0);
        let times = text.rsplit("= ").next().unwrap().split('/');
        let time = |text: &str| Duration::from_secs_f64(text.parse().unwrap_or(0.0) / 1000.0);
        let times: Vec<Duration> = times.map(time).collect();
        RoundTrips {
            average: times.get(1).copied().unwrap_or_default(),
            longest: times.get(2).copied().unwrap_or_default(),
            lost,
        }
    }
}

/// A pod whose interface another plugin created: `eth0` with 10.1.0.2; its host end `veth0` has 10.1.0.1.
pub fn connected_pod(node: &super::Node, name: &str) -> super::Pod {
    let pod = node.pod(name);
    node.run("ip link add veth0 type veth peer name peer0");
    node.run(&format!("ip link set peer0 netns {name} name eth0"));
    node.run("ip addr add 10.1.0.1/24 dev veth0");
    node.run("ip link set veth0 up");
    pod.run("ip addr add 10.1.0.2/24 dev eth0");
    pod.run("ip link set eth0 up");
    pod
}

/// The configuration of bandwidth for the interface of [`connected_pod`], with more keys.
pub fn bandwidth(pod: &super::Pod, keys: &serde_json::Value) -> serde_json::Value {
    let mut config = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "limited",
        "type": "bandwidth",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "veth0" },
                { "name": "eth0", "sandbox": pod.path },
            ],
            "ips": [{ "address": "10.1.0.2/24", "interface": 1 }],
        },
    });
    let keys = keys.as_object().expect("an object").clone();
    config.as_object_mut().expect("an object").extend(keys);
    config
}
