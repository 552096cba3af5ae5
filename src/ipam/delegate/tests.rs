use super::*;
use crate::ipam::tests::{Scratch, attachment_of};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A plugin that is this shell script.
fn plugin(scratch: &Scratch, script: &str) -> Delegate {
    scratch.write("bin/there", &format!("#!/bin/sh\n{script}"));
    let program = scratch.path().join("bin/there");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    delegate(scratch, "there")
}

fn delegate(scratch: &Scratch, plugin: &str) -> Delegate {
    let path = ["/nonexistent".into(), scratch.path().join("bin")];
    let text = format!(
        r#"{{"cniVersion":"0.4.0","name":"net","type":"ptp","ipam":{{"type":"{plugin}"}}}}"#
    );
    let conf = NetConf::parse(text.into_bytes()).unwrap();
    Delegate::new(plugin, &conf, &path)
}

#[test]
fn a_result_of_any_shape_becomes_a_lease() {
    for result in [
        r#"{"ips":[{"version":"4","interface":3,"address":"10.1.0.5/24","gateway":"10.1.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}"#,
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.5/24","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]}}"#,
    ] {
        let scratch = Scratch::new();
        let there = plugin(&scratch, &format!("cat >/dev/null; echo '{result}'"));
        let lease = there.reserve(&attachment_of("a", "eth0")).unwrap();
        assert_eq!(lease.ips.len(), 1);
        assert_eq!(lease.ips[0].address, "10.1.0.5/24".parse().unwrap());
        assert_eq!((lease.ips[0].interface, lease.routes.len()), (None, 1));
    }
}

#[test]
fn it_is_given_the_verb_the_attachment_and_our_stdin() {
    let scratch = Scratch::new();
    let out = scratch.path().display();
    let script =
        format!("cat >{out}/stdin; echo $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>{out}/verbs");
    let there = plugin(&scratch, &script);
    let attachment = attachment_of("a", "eth0");
    there.check(&attachment).unwrap();
    there.release(&attachment).unwrap();
    assert_eq!(scratch.read("verbs"), "CHECK a eth0\nDEL a eth0\n");
    assert_eq!(scratch.read("stdin").into_bytes(), there.stdin);
}

#[test]
fn its_own_error_is_passed_on_as_it_is() {
    let scratch = Scratch::new();
    let there = plugin(
        &scratch,
        r#"echo '{"code":111,"msg":"pool is dry","details":"d"}'; echo noise >&2; exit 1"#,
    );
    let error = there.reserve(&attachment_of("a", "eth0")).unwrap_err();
    assert_eq!(
        (error.code.0, error.msg.as_str(), error.details.as_str()),
        (111, "pool is dry", "d")
    );
}

#[test]
fn what_is_no_answer_is_told_with_program_status_and_words() {
    let scratch = Scratch::new();
    let there = plugin(&scratch, "echo oops >&2; echo half; exit 3");
    let error = there.check(&attachment_of("a", "eth0")).unwrap_err();
    assert_eq!(error.code, Code::PLUGIN);
    assert!(
        error
            .msg
            .contains("CHECK of IPAM plugin there failed: oops")
    );
    for part in ["bin/there", "exit status: 3", "half"] {
        assert!(error.details.contains(part), "{error}");
    }
}

#[test]
fn an_answer_that_cannot_be_used_is_given_back() {
    for answer in [
        "",
        "null",
        "{}",
        "[]",
        "{\"ips\":[{}]}",
        "junk",
        "{\"cniVersion\":\"9.0.0\"}",
    ] {
        let scratch = Scratch::new();
        let verbs = scratch.path().join("verbs");
        let script = format!(
            "echo $CNI_COMMAND >>{}; printf %s '{answer}'",
            verbs.display()
        );
        let there = plugin(&scratch, &script);
        let error = there.reserve(&attachment_of("a", "eth0")).unwrap_err();
        assert_eq!(error.code, Code::PLUGIN, "{answer}: {error}");
        assert!(error.msg.starts_with("IPAM plugin there: "), "{error}");
        assert_eq!(scratch.read("verbs"), "ADD\nDEL\n", "{answer}");
    }
}

#[test]
fn what_is_no_plugin_is_refused_by_name() {
    let scratch = Scratch::new();
    scratch.write("bin/directory/x", "");
    for (name, says) in [
        ("absent", "no directory of CNI_PATH"),
        ("directory", "no directory of CNI_PATH"),
        ("../bin/there", "not a path"),
        ("..", "not a path"),
        ("bridge", "no IPAM plugin"),
        ("ptp", "no IPAM plugin"),
    ] {
        let error = delegate(&scratch, name).locate().unwrap_err();
        assert_eq!(error.code, Code::INVALID_CONFIG);
        assert!(error.msg.contains(says), "{error}");
        assert!(error.msg.contains(name), "{error}");
    }
    let error = delegate(&scratch, "absent").locate().unwrap_err();
    assert!(error.details.contains("/nonexistent, "), "{error}");
}

#[test]
fn an_empty_element_of_the_path_is_the_current_directory() {
    let scratch = Scratch::new();
    let mut here = delegate(&scratch, "Cargo.toml");
    here.path = vec![PathBuf::new()];
    assert_eq!(here.locate().unwrap(), Path::new("./Cargo.toml"));
}

#[test]
fn a_program_that_is_still_being_written_is_waited_for() {
    let scratch = Scratch::new();
    let there = plugin(&scratch, "exit 0");
    let program = scratch.path().join("bin/there");
    let writer = fs::OpenOptions::new().append(true).open(program).unwrap();
    let closer = thread::spawn(move || {
        thread::sleep(BUSY_PAUSE);
        drop(writer);
    });
    there.check(&attachment_of("a", "eth0")).unwrap();
    closer.join().unwrap();
}
