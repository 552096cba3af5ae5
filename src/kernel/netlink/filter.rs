//! Filters (tc(8)): redirection to another link, and classification by flow.

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcMirror, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use nix::libc::{ETH_P_ALL, RTM_DELTFILTER, RTM_NEWTFILTER};

use super::connection::Netlink;
use super::error::NetlinkError;
use super::flow_hash::flow_hash;
use super::tc::{FilterMessage, Handle, Tc, TcChange, nested, tc_message, tc_object};

const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;

/// A filter on the packets that a link receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressFilter {
    pub handle: Handle,
    /// Priority and protocol as in `tcm_info`.
    info: u32,
    parent: Handle,
    /// The index of the link to which a `u32` filter redirects; 0 if that link was deleted.
    pub redirects_to: Option<u32>,
}

impl TcChange {
    /// Redirects all packets that `link` receives to the egress of another one, as the Go plugin does.
    pub fn redirect(link: u32, parent: Handle, priority: u16, to: u32) -> TcChange {
        let mut message = tc_message(link, parent, Handle(0));
        message.header.info = info(priority);
        // One key: no bits of the first word.
        let mut key = TcU32Selector::default();
        key.flags = TcU32SelectorFlags::Terminal;
        key.nkeys = 1;
        key.keys = vec![TcU32Key::default()];
        // Matching packets do not reach the second action. It is there because the Go plugin creates it.
        let actions = [TcActionType::Stolen, TcActionType::Ok];
        let actions = (1..)
            .zip(actions)
            .map(|(order, action)| mirred(order, action, to));
        let options = [
            TcFilterU32Option::ClassId(Handle::new(1, 1).0.into()),
            TcFilterU32Option::Selector(key),
            TcFilterU32Option::Action(actions.collect()),
        ];
        message.attributes = vec![
            TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
            TcAttribute::Options(options.map(TcOption::U32).into()),
        ];
        TcChange::create(RTM_NEWTFILTER, message)
    }

    /// Sorts the packets of a qdisc into `count` classes by flow, a power of two; `first` is the first class.
    pub fn classify_flows(link: u32, qdisc: Handle, first: Handle, count: u32) -> TcChange {
        let mut message = tc_message(link, qdisc, Handle(0));
        message.header.info = info(1);
        let program = flow_hash(first.0, count);
        let length = (program.len() as u16).to_ne_bytes().to_vec();
        let options = nested(&[(TCA_BPF_OPS_LEN, length), (TCA_BPF_OPS, program.concat())]);
        TcChange::create(RTM_NEWTFILTER, tc_object(message, "bpf", options))
    }

    pub fn delete_filter(link: u32, filter: &IngressFilter) -> TcChange {
        let mut message = tc_message(link, filter.parent, filter.handle);
        message.header.info = filter.info;
        message.attributes = vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned())];
        TcChange {
            message_type: RTM_DELTFILTER,
            flags: NLM_F_ACK,
            message,
        }
    }
}

impl Netlink {
    /// The filters on the packets that a link receives. `parent` is [`Handle::INGRESS_QDISC`] or
    /// [`Handle::CLSACT_INGRESS`].
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn ingress_filters(
        &self,
        link: u32,
        parent: Handle,
    ) -> Result<Vec<IngressFilter>, NetlinkError> {
        let request: FilterMessage = Tc(tc_message(link, parent, Handle(0)));
        let answers = self.dump(&request)?;
        let filters = answers.into_iter().filter(is_filter);
        Ok(filters
            .map(|it| IngressFilter::from((it, parent)))
            .collect())
    }
}

impl From<(FilterMessage, Handle)> for IngressFilter {
    fn from((Tc(message), parent): (FilterMessage, Handle)) -> IngressFilter {
        let options = message.attributes.iter().flat_map(|it| match it {
            TcAttribute::Options(options) => &options[..],
            _ => &[],
        });
        let actions = options.flat_map(|it| match it {
            TcOption::U32(TcFilterU32Option::Action(actions)) => &actions[..],
            _ => &[],
        });
        let attributes = actions.flat_map(|action| &action.attributes);
        let options = attributes.flat_map(|it| match it {
            TcActionAttribute::Options(options) => &options[..],
            _ => &[],
        });
        let redirects_to = options.into_iter().find_map(|it| match it {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
            _ => None,
        });
        IngressFilter {
            handle: Handle(message.header.handle.into()),
            info: message.header.info,
            parent,
            redirects_to,
        }
    }
}

/// A dump also has a message without a handle for each priority, and those of the hash tables of `u32`, whose handles have
/// no node (`gen_new_htid`, net/sched/cls_u32.c).
fn is_filter(Tc(message): &FilterMessage) -> bool {
    let handle = u32::from(message.header.handle);
    let is_u32 = message
        .attributes
        .contains(&TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    handle != 0 && !(is_u32 && handle & 0xf_ffff == 0)
}

/// `tcm_info`: the priority, and the protocol in network byte order.
fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from((ETH_P_ALL as u16).to_be())
}

fn mirred(order: u16, action: TcActionType, to: u32) -> TcAction {
    let mut generic = TcActionGeneric::default();
    generic.action = action;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.ifindex = to;
    let parms = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut redirect = TcAction::default();
    redirect.tab = order;
    redirect.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![parms]),
    ];
    redirect
}
