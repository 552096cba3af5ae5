use super::*;
use crate::ipam::delegate::reserve;
use crate::ipam::tests::{Scratch, attachment_of};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// An IPAM plugin implemented by a shell script.
fn plugin(scratch: &Scratch, script: &str) -> Delegate {
    scratch.write("bin/ipam-plugin", &format!("#!/bin/sh\n{script}"));
    let program = scratch.path().join("bin/ipam-plugin");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    delegate(scratch, "ipam-plugin")
}

fn delegate(scratch: &Scratch, plugin: &str) -> Delegate {
    let path = ["/nonexistent".into(), scratch.path().join("bin")];
    let text = format!(
        r#"{{"cniVersion":"0.4.0","name":"net","type":"ptp","ipam":{{"type":"{plugin}"}}}}"#
    );
    let conf = NetConf::parse(text.into_bytes()).unwrap();
    Delegate::new(Role::Ipam, plugin, &conf, &path)
}

#[test]
fn results_of_all_versions_are_accepted() {
    for result in [
        r#"{"ips":[{"version":"4","interface":3,"address":"10.1.0.5/24","gateway":"10.1.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}"#,
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.5/24","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]}}"#,
    ] {
        let scratch = Scratch::new();
        let delegate = plugin(&scratch, &format!("cat >/dev/null; echo '{result}'"));
        let lease = reserve(&delegate, &attachment_of("a", "eth0")).unwrap();
        assert_eq!(lease.ips.len(), 1);
        assert_eq!(lease.ips[0].address, "10.1.0.5/24".parse().unwrap());
        assert_eq!((lease.ips[0].interface, lease.routes.len()), (None, 1));
    }
}

#[test]
fn the_plugin_receives_command_attachment_and_stdin() {
    let scratch = Scratch::new();
    let out = scratch.path().display();
    let script = format!(
        "cat >{out}/stdin; echo $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>{out}/commands"
    );
    let delegate = plugin(&scratch, &script);
    let attachment = attachment_of("a", "eth0");
    delegate.check(&attachment).unwrap();
    delegate.release(&attachment).unwrap();
    assert_eq!(scratch.read("commands"), "CHECK a eth0\nDEL a eth0\n");
    assert_eq!(scratch.read("stdin").into_bytes(), delegate.stdin);
}

#[test]
fn the_error_of_the_plugin_is_returned_unchanged() {
    let scratch = Scratch::new();
    let delegate = plugin(
        &scratch,
        r#"echo '{"code":111,"msg":"pool is dry","details":"d"}'; echo noise >&2; exit 1"#,
    );
    let error = reserve(&delegate, &attachment_of("a", "eth0")).unwrap_err();
    assert_eq!(
        (error.code.0, error.msg.as_str(), error.details.as_str()),
        (111, "pool is dry", "d")
    );
}

#[test]
fn a_failure_without_cni_error_is_reported_with_program_status_and_output() {
    let scratch = Scratch::new();
    let delegate = plugin(&scratch, "echo oops >&2; echo half; exit 3");
    let error = delegate.check(&attachment_of("a", "eth0")).unwrap_err();
    assert_eq!(error.code, Code::PLUGIN);
    assert!(
        error
            .msg
            .contains("CHECK of IPAM plugin ipam-plugin failed: oops")
    );
    for part in ["bin/ipam-plugin", "exit status: 3", "half"] {
        assert!(error.details.contains(part), "{error}");
    }
}

#[test]
fn an_invalid_result_is_followed_by_del() {
    for output in [
        "",
        "null",
        "{}",
        "[]",
        "{\"ips\":[{}]}",
        "junk",
        "{\"cniVersion\":\"9.0.0\"}",
    ] {
        let scratch = Scratch::new();
        let commands = scratch.path().join("commands");
        let script = format!(
            "echo $CNI_COMMAND >>{}; printf %s '{output}'",
            commands.display()
        );
        let delegate = plugin(&scratch, &script);
        let error = reserve(&delegate, &attachment_of("a", "eth0")).unwrap_err();
        assert_eq!(error.code, Code::PLUGIN, "{output}: {error}");
        assert!(
            error.msg.starts_with("IPAM plugin ipam-plugin: "),
            "{error}"
        );
        assert_eq!(scratch.read("commands"), "ADD\nDEL\n", "{output}");
    }
}

#[test]
fn errors_name_a_missing_plugin() {
    let scratch = Scratch::new();
    scratch.write("bin/directory/x", "");
    for (name, expected) in [
        ("absent", "no directory of CNI_PATH"),
        ("directory", "no directory of CNI_PATH"),
        ("../bin/ipam-plugin", "not a path"),
        ("..", "not a path"),
        ("bridge", "no IPAM plugin"),
        ("ptp", "no IPAM plugin"),
    ] {
        let error = delegate(&scratch, name).locate().unwrap_err();
        assert_eq!(error.code, Code::INVALID_CONFIG);
        assert!(error.msg.contains(expected), "{error}");
        assert!(error.msg.contains(name), "{error}");
    }
    let error = delegate(&scratch, "absent").locate().unwrap_err();
    assert!(error.details.contains("/nonexistent, "), "{error}");
}

#[test]
fn an_empty_element_of_the_path_is_the_current_directory() {
    let scratch = Scratch::new();
    let mut delegate = delegate(&scratch, "Cargo.toml");
    delegate.path = vec![PathBuf::new()];
    assert_eq!(delegate.locate().unwrap(), Path::new("./Cargo.toml"));
}

#[test]
fn a_program_that_is_being_written_is_retried() {
    let scratch = Scratch::new();
    let delegate = plugin(&scratch, "exit 0");
    let program = scratch.path().join("bin/ipam-plugin");
    let writer = fs::OpenOptions::new().append(true).open(program).unwrap();
    let closer = thread::spawn(move || {
        thread::sleep(BUSY_PAUSE);
        drop(writer);
    });
    delegate.check(&attachment_of("a", "eth0")).unwrap();
    closer.join().unwrap();
}
