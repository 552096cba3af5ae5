//! One thing that is wrong: what it is, how it shows, what to do.

use serde::Serialize;

use crate::cni::names::{Attachment, NetworkName};
use crate::net::{Family, IfName};
use crate::netfilter::masquerade::MasqueradeEntry;
use crate::plugins::bridge::reconcile::Repair;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods do not work, or new ones will not.
    Error,
    /// It will be in the way one day, or wastes something.
    Warning,
}

/// Something that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// A short name that stays the same, for scripts.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong and why, in one line.
    pub cause: String,
    /// What shows it.
    pub evidence: Vec<String>,
    /// What to do about it.
    pub remedy: String,
    /// How it can be repaired without harm, if it can.
    #[serde(skip)]
    pub fix: Option<Fix>,
}

/// A repair that is safe.
#[derive(Clone, Debug)]
pub enum Fix {
    /// What DEL does without a namespace, for an attachment of the network of that position.
    Detach(usize, Attachment),
    /// Removes files that are named after an address but name nobody, of the network of that position.
    ClearGarbled(usize),
    /// Removes this masquerading of a network.
    Unmasquerade(NetworkName, Vec<MasqueradeEntry>),
    /// Puts one thing back, in the network of that position.
    Restore(usize, Box<Repair>),
    /// Lets the host forward.
    Forward(Family),
    /// Takes router advertisements on an interface of a host that forwards.
    AcceptAdvertisements(IfName),
}

impl Finding {
    /// One that matters now.
    pub fn error(id: &'static str, cause: impl Into<String>) -> Finding {
        Finding {
            id,
            severity: Severity::Error,
            cause: cause.into(),
            evidence: Vec::new(),
            remedy: String::new(),
            fix: None,
        }
    }

    /// One that will.
    pub fn warning(id: &'static str, cause: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Warning,
            ..Finding::error(id, cause)
        }
    }

    /// With one more thing that shows it.
    pub fn shown_by(mut self, evidence: impl Into<String>) -> Finding {
        self.evidence.push(evidence.into());
        self
    }

    /// With what to do.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = remedy.into();
        self
    }

    /// With a repair.
    pub fn fixed_by(mut self, fix: Fix) -> Finding {
        self.fix = Some(fix);
        self
    }
}
