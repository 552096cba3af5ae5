//! Packet filter entries that attachments own, in iptables and nftables.

pub mod forward;
pub(crate) mod iptables;
pub(crate) mod iptables_nft;
pub mod mac_spoof_check;
pub mod masquerade;
