//! The topology as a small picture: the world above, the node, the pods below.

use std::fmt;

use crate::Failure;
use crate::facts::ObservedLinks;
use crate::namespace::Namespace;
use crate::runtime::{Attached, Network};
use crate::scene::{CARD, Scene};
use crate::show::millis;

/// The width of a pod's box: its cable, and the name of its link on the node beside that.
const BOX: usize = 30;

/// Where a box has its cable, counted from its left side.
const CABLE: usize = 11;

/// Characters on a grid.
pub struct Picture(Vec<Vec<char>>);

impl Picture {
    /// That of the whole scene. Fails where a pod is not wired as it should be.
    pub fn of(
        scene: &Scene,
        network: &Network,
        pods: &[Namespace],
        attached: &[Attached],
    ) -> Result<Picture, Failure> {
        let width = (BOX + 1) * pods.len() - 1;
        let mut picture = Picture(vec![vec![' '; width]; 17]);
        picture.frame((0, 0), (BOX, 4), "world");
        picture.link((2, 1), CARD, &ObservedLinks::of(&scene.world, CARD)?);
        picture.frame((0, 4), (width, 8), "node");
        picture.text((CABLE, 3), "┬");
        picture.text((CABLE, 4), "┴");
        picture.link((2, 5), CARD, &ObservedLinks::of(&scene.node, CARD)?);
        let bridge = ObservedLinks::of(&scene.node, network.bridge())?;
        picture.link((2, 7), network.bridge(), &bridge);
        picture.text((BOX + 2, 7), "the bridge");
        picture.text((3, 8), "│");
        picture.text((3, 9), "└");
        picture.text((4, 9), &"─".repeat(width - BOX + CABLE - 4));
        for (index, (pod, attached)) in pods.iter().zip(attached).enumerate() {
            wired(scene, network, pod, attached)?;
            let left = (BOX + 1) * index;
            let is_last = index + 1 == pods.len();
            picture.text((left + CABLE, 9), if is_last { "┐" } else { "┬" });
            picture.text((left + CABLE, 10), &format!("│ {}", attached.host_link));
            picture.text((left + CABLE, 11), "┼");
            picture.frame((left, 12), (BOX, 5), &format!("pod {}", pod.name));
            picture.text((left + CABLE, 12), "┴");
            picture.link((left + 2, 13), CARD, &ObservedLinks::of(pod, CARD)?);
            let took = format!("ADD took {}", millis(attached.took));
            picture.text((left + 2, 15), &took);
        }
        Ok(picture)
    }

    fn text(&mut self, (x, y): (usize, usize), text: &str) {
        for (place, character) in self.0[y][x..].iter_mut().zip(text.chars()) {
            *place = character;
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

    /// Two lines: name and address, and the MAC address below.
    fn link(&mut self, (x, y): (usize, usize), name: &str, facts: &ObservedLinks) {
        let address = facts.address.map(|cidr| cidr.to_string());
        self.text((x, y), name);
        self.text((x + 6, y), &address.unwrap_or_default());
        self.text((x + 6, y + 1), &facts.mac.to_string());
    }
}

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.0.iter().map(|row| row.iter().collect::<String>());
        rows.try_for_each(|row| writeln!(f, "  {}", row.trim_end()))
    }
}

/// Fails unless the pod's end has the address that ADD told, and the node's end is a port of the bridge.
fn wired(
    scene: &Scene,
    network: &Network,
    pod: &Namespace,
    attached: &Attached,
) -> Result<(), Failure> {
    let (port, bridge) = (&attached.host_link, network.bridge());
    if ObservedLinks::of(&scene.node, port)?.bridge.as_deref() != Some(bridge) {
        return Err(format!("the picture is wrong: {port} is no port of {bridge}").into());
    }
    if ObservedLinks::of(pod, CARD)?.address != Some(attached.address) {
        let (name, address) = (&pod.name, attached.address);
        return Err(format!("the picture is wrong: {name} has not {address}").into());
    }
    Ok(())
}
