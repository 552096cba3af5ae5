//! Packet filter entries that attachments own, in iptables and nftables.

pub mod firewall;
pub mod forward;
pub(crate) mod iptables;
pub mod iptables_save;
mod lock;
pub mod mac_spoof_check;
pub mod masquerade;
mod owned_chain;
pub mod portmap;
pub mod rule_comment;
pub mod tables;

use crate::error::{Code, Error};
use crate::kernel::nftables::{Nftables, NftablesError, not_found_as_none};

/// A feature whose entries are in nf_tables.
struct Feature {
    /// Error messages begin with it.
    name: &'static str,
    /// What to do where the kernel lacks nf_tables.
    remedy: &'static str,
}

impl Feature {
    /// Runs an operation that needs nf_tables.
    fn with_nftables<T>(
        &self,
        operation: &str,
        run: impl FnOnce(&Nftables) -> Result<T, NftablesError>,
    ) -> Result<T, Error> {
        let done = Nftables::open().and_then(|nftables| run(&nftables));
        done.map_err(|cause| self.failed(operation, cause))
    }

    /// Runs an operation on what may not exist: `None` if nf_tables or the object is absent.
    fn with_existing<T>(
        &self,
        operation: &str,
        run: impl FnOnce(&Nftables) -> Result<T, NftablesError>,
    ) -> Result<Option<T>, Error> {
        let done = Nftables::open().and_then(|nftables| run(&nftables));
        not_found_as_none(done).map_err(|cause| self.failed(operation, cause))
    }

    fn failed(&self, operation: &str, cause: NftablesError) -> Error {
        let code = match cause {
            NftablesError::Changed | NftablesError::NoAnswer => Code::TRY_AGAIN,
            _ => Code::PLUGIN,
        };
        let error = Error::new(code, format!("{}: cannot {operation}: {cause}", self.name));
        match cause {
            NftablesError::Unsupported(_) => error.details(self.remedy),
            _ => error,
        }
    }
}
