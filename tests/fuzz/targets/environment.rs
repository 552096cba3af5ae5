//! The environment of a plugin: variables separated by NUL, as in /proc/PID/environ.

#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use gangplank::cni::args::Args;
use gangplank::cni::environment::{DelTarget, Environment, Invocation, Operation, Target};
use gangplank::cni::names::Attachment;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let pairs = data.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        Some((text(&variable[..at]), text(&variable[at + 1..])))
    });
    let env: Environment = pairs.collect();
    if let Some(text) = env.var("CNI_ARGS") {
        args(&text);
    }
    let Ok(invocation) = Invocation::parse(&env) else {
        return;
    };
    match &invocation.operation {
        Operation::Add(Target {
            attachment: of,
            netns,
        })
        | Operation::Check(Target {
            attachment: of,
            netns,
        }) => {
            assert!(!netns.is_empty());
            attachment(of);
        }
        Operation::Del(DelTarget {
            attachment: of,
            netns,
        }) => {
            assert!(netns.as_ref().is_none_or(|netns| !netns.is_empty()));
            attachment(of);
        }
        Operation::Gc | Operation::Status | Operation::Version => {}
    }
    assert_eq!(
        env.var("CNI_COMMAND").as_deref(),
        Some(invocation.command.as_str())
    );
});

/// Checks the names that are used for files, links and rules.
fn attachment(of: &Attachment) {
    let container = of.container.as_str();
    assert!(!container.is_empty() && container.is_ascii() && !container.starts_with(['.', '-']));
    assert!(
        !container.contains(|c: char| c.is_whitespace() || c.is_control() || "/\"\\'".contains(c))
    );
    let interface = of.interface.as_str();
    assert!((1..=15).contains(&interface.len()) && !matches!(interface, "." | ".."));
    assert!(!interface.contains(|c: char| c.is_whitespace() || "/:\0".contains(c)));
}

fn args(text: &str) {
    let Ok(args) = Args::parse(text) else { return };
    let mut again = String::from("IgnoreUnknown=1");
    if let Ok(Some(mac)) = args.mac() {
        again.push_str(&format!(";MAC={mac}"));
    }
    if let Ok(ips) = args.ips()
        && !ips.is_empty()
    {
        let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
        again.push_str(&format!(";IP={}", ips.join(",")));
    }
    if let Some((namespace, name)) = args.pod.as_ref().and_then(|pod| pod.split_once('/')) {
        // With a slash in the namespace the text would be split at another position.
        if !name.contains('/') {
            again.push_str(&format!(
                ";K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"
            ));
            assert_same(&again, &args);
        }
    } else {
        assert_same(&again, &args);
    }
}

/// Compares arguments. Invalid values are not compared.
fn assert_same(again: &str, args: &Args) {
    let again = Args::parse(again).unwrap();
    assert_eq!(again.pod, args.pod);
    if let (Ok(mac), Ok(ips)) = (args.mac(), args.ips()) {
        assert_eq!((again.mac(), again.ips()), (Ok(mac), Ok(ips)));
    }
}
