//! A classic BPF program that computes the class of a packet from its addresses and ports. The classifier `bpf` takes the
//! result as the class, 0 as none (`cls_bpf_classify`, net/sched/cls_bpf.c).

use nix::libc::{
    BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K,
    BPF_LD, BPF_LDX, BPF_MEM, BPF_MISC, BPF_MSH, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_TAX, BPF_W,
    BPF_X, IPPROTO_TCP, IPPROTO_UDP,
};

/// SKF_NET_OFF: offsets from here on are relative to the network header (linux/filter.h).
const NETWORK: u32 = -0x10_0000_i32 as u32;

/// 2^32 divided by the golden ratio (multiplicative hashing).
const MULTIPLIER: u32 = 0x9e37_79b1;

/// The word of scratch memory with the hash. It must be stored before it is loaded (`check_load_and_stores`).
const HASH: u32 = 0;

/// A `struct sock_filter`.
pub(super) type Instruction = [u8; 8];

/// A program that returns one of `count` classes, a power of two, of which `first` is the first. Packets that are neither
/// TCP nor UDP have none; fragments are sorted by addresses.
pub(super) fn flow_hash(first: u32, count: u32) -> Vec<Instruction> {
    let result = vec![
        op(BPF_LD | BPF_MEM, HASH),
        op(BPF_ALU | BPF_MUL | BPF_K, MULTIPLIER),
        op(
            BPF_ALU | BPF_RSH | BPF_K,
            u32::BITS - count.trailing_zeros(),
        ),
        op(BPF_ALU | BPF_ADD | BPF_K, first),
        op(BPF_RET | BPF_A, 0),
    ];
    // The IPv4 header has a variable length; BPF_MSH loads it.
    let ports = mix(&[
        op(BPF_LDX | BPF_B | BPF_MSH, NETWORK),
        op(BPF_LD | BPF_W | BPF_IND, NETWORK),
    ]);
    let is_fragment = [
        load(BPF_H, 6),
        jump(BPF_JSET, 0x3fff, [ports.len() as u8, 0]),
    ];
    let ports = [&is_fragment[..], &ports].concat();
    let v4 = [addresses(&[12, 16]), if_ports(9, ports), result.clone()].concat();
    let ports = mix(&[load(BPF_W, 40)]);
    let words = [8, 12, 16, 20, 24, 28, 32, 36];
    let v6 = [addresses(&words), if_ports(6, ports), result].concat();
    [
        &[
            op(BPF_LD, 0),
            op(BPF_ST, HASH),
            load(BPF_B, 0),
            op(BPF_ALU | BPF_RSH | BPF_K, 4),
            jump(BPF_JEQ, 4, [0, v4.len() as u8]),
        ][..],
        &v4,
        &[jump(BPF_JEQ, 6, [0, v6.len() as u8])],
        &v6,
        &[op(BPF_RET | BPF_K, 0)],
    ]
    .concat()
}

/// Adds the words at these offsets to the hash.
fn addresses(words: &[u32]) -> Vec<Instruction> {
    let words = words.iter().map(|word| mix(&[load(BPF_W, *word)]));
    words.flatten().collect()
}

/// Executes `then` if the protocol at this offset has ports; otherwise there is no class.
fn if_ports(protocol: u32, then: Vec<Instruction>) -> Vec<Instruction> {
    let is_ported = [
        load(BPF_B, protocol),
        jump(BPF_JEQ, IPPROTO_TCP as u32, [2, 0]),
        jump(BPF_JEQ, IPPROTO_UDP as u32, [1, 0]),
        op(BPF_RET | BPF_K, 0),
    ];
    [&is_ported[..], &then].concat()
}

/// Adds the loaded value to the hash.
fn mix(load: &[Instruction]) -> Vec<Instruction> {
    let mix = [
        op(BPF_MISC | BPF_TAX, 0),
        op(BPF_LD | BPF_MEM, HASH),
        op(BPF_ALU | BPF_MUL | BPF_K, MULTIPLIER),
        op(BPF_ALU | BPF_ADD | BPF_X, 0),
        op(BPF_ST, HASH),
    ];
    [load, &mix].concat()
}

/// Loads from an offset in the network header.
fn load(size: u32, offset: u32) -> Instruction {
    op(BPF_LD | BPF_ABS | size, NETWORK.wrapping_add(offset))
}

fn op(code: u32, operand: u32) -> Instruction {
    instruction(code, [0, 0], operand)
}

/// Skips instructions: so many if the condition is true, and if it is not.
fn jump(condition: u32, operand: u32, skipped: [u8; 2]) -> Instruction {
    instruction(BPF_JMP | condition | BPF_K, skipped, operand)
}

fn instruction(code: u32, [jt, jf]: [u8; 2], operand: u32) -> Instruction {
    let [code_low, code_high] = (code as u16).to_ne_bytes();
    let [a, b, c, d] = operand.to_ne_bytes();
    [code_low, code_high, jt, jf, a, b, c, d]
}
