//! A diagram of the topology: the external host at the top, the node, the pods at the bottom.

use std::fmt;

use crate::Failure;
use crate::namespace::Namespace;
use crate::output::millis;
use crate::runtime::{Attached, Network};
use crate::state::LinkState;
use crate::topology::{INTERFACE, Topology};

/// The width of a pod's box in characters.
const BOX: usize = 30;

/// The column of the veth pair in a box.
const VETH: usize = 11;

/// A grid of characters.
pub struct Diagram(Vec<Vec<char>>);

impl Diagram {
    /// The diagram of nodes and pods.
    ///
    /// # Errors
    /// If a pod is not attached as its ADD reported.
    pub fn of(
        topology: &Topology,
        network: &Network,
        pods: &[Namespace],
        attached: &[Attached],
    ) -> Result<Diagram, Failure> {
        let width = (BOX + 1) * pods.len() - 1;
        let mut diagram = Diagram(vec![vec![' '; width]; 17]);
        diagram.frame((0, 0), (BOX, 4), "world");
        diagram.link(
            (2, 1),
            INTERFACE,
            &LinkState::observe(&topology.world, INTERFACE)?,
        );
        diagram.frame((0, 4), (width, 8), "node");
        diagram.text((VETH, 3), "┬");
        diagram.text((VETH, 4), "┴");
        diagram.link(
            (2, 5),
            INTERFACE,
            &LinkState::observe(&topology.node, INTERFACE)?,
        );
        let bridge = LinkState::observe(&topology.node, network.bridge())?;
        diagram.link((2, 7), network.bridge(), &bridge);
        diagram.text((BOX + 2, 7), "bridge");
        diagram.text((3, 8), "│");
        diagram.text((3, 9), "└");
        diagram.text((4, 9), &"─".repeat(width - BOX + VETH - 4));
        for (index, (pod, attached)) in pods.iter().zip(attached).enumerate() {
            check_attached(topology, network, pod, attached)?;
            let left = (BOX + 1) * index;
            let is_last = index + 1 == pods.len();
            diagram.text((left + VETH, 9), if is_last { "┐" } else { "┬" });
            diagram.text((left + VETH, 10), &format!("│ {}", attached.host_link));
            diagram.text((left + VETH, 11), "┼");
            diagram.frame((left, 12), (BOX, 5), &format!("pod {}", pod.name));
            diagram.text((left + VETH, 12), "┴");
            diagram.link(
                (left + 2, 13),
                INTERFACE,
                &LinkState::observe(pod, INTERFACE)?,
            );
            let took = format!("ADD took {}", millis(attached.took));
            diagram.text((left + 2, 15), &took);
        }
        Ok(diagram)
    }

    fn text(&mut self, (x, y): (usize, usize), text: &str) {
        for (cell, character) in self.0[y][x..].iter_mut().zip(text.chars()) {
            *cell = character;
        }
    }

    fn frame(&mut self, (x, y): (usize, usize), (width, height): (usize, usize), title: &str) {
        let line = "─".repeat(width - 2);
        self.text((x, y), &format!("┌{line}┐"));
        self.text((x + 1, y), &format!("─ {title} "));
        for row in y + 1..y + height - 1 {
            self.text((x, row), "│");
            self.text((x + width - 1, row), "│");
        }
        self.text((x, y + height - 1), &format!("└{line}┘"));
    }

    /// Two lines: name and address; MAC address.
    fn link(&mut self, (x, y): (usize, usize), name: &str, state: &LinkState) {
        let address = state.address.map(|cidr| cidr.to_string());
        self.text((x, y), name);
        self.text((x + 6, y), &address.unwrap_or_default());
        self.text((x + 6, y + 1), &state.mac.to_string());
    }
}

impl fmt::Display for Diagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.0.iter().map(|row| row.iter().collect::<String>());
        rows.try_for_each(|row| writeln!(f, "  {}", row.trim_end()))
    }
}

/// Fails unless the container end has the address of the result, and the host end is a port of the bridge.
fn check_attached(
    topology: &Topology,
    network: &Network,
    pod: &Namespace,
    attached: &Attached,
) -> Result<(), Failure> {
    let (port, bridge) = (&attached.host_link, network.bridge());
    if LinkState::observe(&topology.node, port)?.bridge.as_deref() != Some(bridge) {
        return Err(format!("{port} is not a port of {bridge}").into());
    }
    if LinkState::observe(pod, INTERFACE)?.address != Some(attached.address) {
        let (name, address) = (&pod.name, attached.address);
        return Err(format!("{name} does not have the address {address}").into());
    }
    Ok(())
}
