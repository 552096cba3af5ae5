//! Packet filter entries that attachments own, in iptables and nftables.

pub mod forward;
pub(crate) mod iptables;
mod iptables_save;
pub mod mac_spoof_check;
pub mod masquerade;

use crate::error::{Code, Error};
use crate::kernel::nftables::NftablesError;

/// The error of a feature that could not change or list its entries; `remedy` is for kernels without nf_tables.
fn failed(feature: &str, operation: &str, remedy: &str, cause: NftablesError) -> Error {
    let code = match cause {
        NftablesError::Changed | NftablesError::NoAnswer => Code::TRY_AGAIN,
        _ => Code::PLUGIN,
    };
    let error = Error::new(code, format!("{feature}: cannot {operation}: {cause}"));
    match cause {
        NftablesError::Unsupported(_) => error.details(remedy),
        _ => error,
    }
}
