//! `gangplank install` and `uninstall`.

use crate::fixture::Fixture;
use crate::support::{PLUGINS, binary, plugins_of_go, requires};

const BIN: &str = "/run/opt/bin";

/// Debian's file of a Go plugin. It has no flannel: another plugin stands for it.
fn go_plugin(name: &str) -> String {
    let known = plugins_of_go().find(|known| *known == name);
    format!("/usr/lib/cni/{}", known.unwrap_or("dhcp"))
}

/// A node with its own copy of the binary, and with the Go plugins in a directory.
fn with_go() -> Fixture {
    let fixture = Fixture::new();
    fixture.run_all(&format!(
        "mkdir -p {BIN}\ncp -L {} /run/gangplank",
        binary().display()
    ));
    for name in PLUGINS {
        fixture.run(&format!("cp {} {BIN}/{name}", go_plugin(name)));
    }
    fixture.run(&format!("cp /usr/lib/cni/vlan {BIN}/vlan"));
    fixture
}

fn is_same(fixture: &Fixture, one: &str, other: &str) -> bool {
    fixture
        .try_run(&format!("cmp -s {one} {other}"))
        .status
        .success()
}

fn installed(fixture: &Fixture) -> Vec<bool> {
    PLUGINS
        .iter()
        .map(|name| is_same(fixture, &format!("{BIN}/{name}"), "/run/gangplank"))
        .collect()
}

#[test]
fn the_go_plugins_are_saved_and_restored() {
    requires!("cni:bridge", "cni:vlan");
    let fixture = with_go();
    let before = fixture.files(BIN);
    let answer = fixture.under(&format!("/run/gangplank install {BIN}"));
    assert!(
        answer.success().contains("CNI bridge plugin")
            && answer.stdout.contains("is kept as bridge.orig"),
        "{answer:?}"
    );
    assert_eq!(installed(&fixture), [true; PLUGINS.len()]);
    for name in PLUGINS {
        assert!(
            is_same(&fixture, &format!("{BIN}/{name}.orig"), &go_plugin(name)),
            "{name}"
        );
        assert_eq!(fixture.run(&format!("stat -c %a {BIN}/{name}")), "755\n");
    }
    // It reports its version under its new name.
    let about = fixture.under(&format!("env CNI_COMMAND=VERSION {BIN}/bridge"));
    assert_eq!(about.code, Some(0), "{about:?}");
    // A second install overwrites no backup.
    let again = fixture.under(&format!("/run/gangplank install {BIN}"));
    assert!(!again.success().contains("kept"), "{again:?}");
    assert!(is_same(
        &fixture,
        &format!("{BIN}/bridge.orig"),
        "/usr/lib/cni/bridge"
    ));
    let back = fixture.under(&format!("/run/gangplank uninstall {BIN}"));
    assert_eq!(
        back.success().matches("is back").count(),
        PLUGINS.len(),
        "{back:?}"
    );
    assert_eq!(fixture.files(BIN), before);
    // A second uninstall keeps the Go plugins.
    let again = fixture.under(&format!("/run/gangplank uninstall {BIN}"));
    assert_eq!(
        again.success().matches("and stays").count(),
        PLUGINS.len(),
        "{again:?}"
    );
    assert_eq!(fixture.files(BIN), before);
}

#[test]
fn an_older_gangplank_is_replaced_and_its_saved_plugins_are_kept() {
    requires!("cni:bridge", "cni:vlan");
    let fixture = with_go();
    fixture
        .under(&format!("/run/gangplank install {BIN}"))
        .success();
    // Another build: the binary with appended bytes.
    fixture.write("/run/more", &format!("for f in {}; do cp {BIN}/$f /run/old && echo x >>/run/old && mv /run/old {BIN}/$f; done\n", PLUGINS.join(" ")));
    fixture.run("bash /run/more");
    assert_eq!(installed(&fixture), [false; PLUGINS.len()]);
    let answer = fixture.under(&format!("/run/gangplank install {BIN}"));
    assert!(!answer.success().contains("kept"), "{answer:?}");
    assert_eq!(installed(&fixture), [true; PLUGINS.len()]);
    assert!(is_same(
        &fixture,
        &format!("{BIN}/bridge.orig"),
        "/usr/lib/cni/bridge"
    ));
}

#[test]
fn a_foreign_program_installed_later_is_saved_too() {
    requires!("cni:bridge", "cni:vlan");
    let fixture = with_go();
    fixture
        .under(&format!("/run/gangplank install {BIN}"))
        .success();
    fixture.write("/run/newer", "#!/bin/sh\necho CNI bridge plugin v9 >&2\n");
    fixture.run_all(&format!(
        "chmod 755 /run/newer\ncp --remove-destination /run/newer {BIN}/bridge"
    ));
    let running = fixture.under(&format!("/run/gangplank uninstall {BIN}"));
    assert!(
        running
            .success()
            .contains("is not gangplank but \"CNI bridge plugin v9\", and stays"),
        "{running:?}"
    );
    assert!(is_same(&fixture, &format!("{BIN}/bridge"), "/run/newer"));
    let answer = fixture.under(&format!("/run/gangplank install {BIN}"));
    assert!(
        answer
            .success()
            .contains("CNI bridge plugin v9 is kept as bridge.orig"),
        "{answer:?}"
    );
    assert!(is_same(
        &fixture,
        &format!("{BIN}/bridge.orig"),
        "/run/newer"
    ));
    fixture
        .under(&format!("/run/gangplank uninstall {BIN}"))
        .success();
    assert!(is_same(&fixture, &format!("{BIN}/bridge"), "/run/newer"));
}

#[test]
fn uninstall_leaves_an_empty_directory_if_nothing_was_replaced() {
    requires!();
    let fixture = Fixture::new();
    let answer = fixture.gangplank("install /run/new/cni/bin");
    assert_eq!(answer.success().lines().count(), PLUGINS.len());
    assert_eq!(
        fixture.run("ls -A /run/new/cni/bin"),
        format!("{}\n", PLUGINS.join("\n"))
    );
    let back = fixture.gangplank("uninstall /run/new/cni/bin");
    assert_eq!(
        back.success()
            .matches("nothing had been there before")
            .count(),
        PLUGINS.len(),
        "{back:?}"
    );
    assert_eq!(fixture.run("ls -A /run/new/cni/bin"), "");
    let again = fixture.gangplank("uninstall /run/new/cni/bin");
    assert_eq!(
        again.success().matches("is not there").count(),
        PLUGINS.len(),
        "{again:?}"
    );
    let never = fixture.gangplank("uninstall /run/never");
    assert_eq!(
        never.success().matches("is not there").count(),
        PLUGINS.len(),
        "{never:?}"
    );
    assert!(!fixture.try_run("ls /run/never").status.success());
}

#[test]
fn a_subset_leaves_all_other_files_unchanged() {
    requires!("cni:bridge", "cni:vlan");
    let fixture = with_go();
    let before = fixture.files(BIN);
    let expected = |ours: &[&str]| -> Vec<bool> {
        let is_ours = |name: &&str| ours.contains(name);
        PLUGINS.iter().map(is_ours).collect()
    };
    let answer = fixture.gangplank(&format!("install {BIN} --only tuning host-local"));
    assert_eq!(answer.success().lines().count(), 2, "{answer:?}");
    assert_eq!(installed(&fixture), expected(&["tuning", "host-local"]));
    fixture
        .gangplank(&format!("install --only=bridge,tuning {BIN}"))
        .success();
    assert_eq!(
        installed(&fixture),
        expected(&["bridge", "tuning", "host-local"])
    );
    let back = fixture.gangplank(&format!("uninstall {BIN} --only tuning"));
    assert!(back.success().contains("tuning.orig is back"), "{back:?}");
    assert_eq!(installed(&fixture), expected(&["bridge", "host-local"]));
    fixture.gangplank(&format!("uninstall {BIN}")).success();
    assert_eq!(fixture.files(BIN), before);
    // A name is checked before anything changes, and the answer lists the plugins.
    let unknown = fixture.gangplank(&format!("install {BIN} --only bridge vlan"));
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    assert!(
        unknown.stderr.contains("vlan") && unknown.stderr.contains("host-local"),
        "{unknown:?}"
    );
    assert_eq!(fixture.files(BIN), before);
}

#[test]
fn an_installed_binary_can_install_and_uninstall_itself() {
    requires!();
    let fixture = Fixture::new();
    fixture.run_all(&format!(
        "mkdir -p {BIN}\ncp -L {} {BIN}/gangplank",
        binary().display()
    ));
    fixture.write(
        "/run/self",
        &format!("exec -a gangplank {BIN}/$1 $2 {BIN}\n"),
    );
    for (program, verb) in [
        ("gangplank", "install"),
        ("bridge", "install"),
        ("host-local", "install"),
        ("bridge", "uninstall"),
    ] {
        let answer = fixture.under(&format!("bash /run/self {program} {verb}"));
        assert_eq!(
            answer.success().lines().count(),
            PLUGINS.len(),
            "{program} {verb}: {answer:?}"
        );
        assert!(!answer.stdout.contains("orig"), "{answer:?}");
        let names = fixture.run(&format!("ls -A {BIN}"));
        let mut wanted = vec!["gangplank"];
        if verb == "install" {
            wanted.extend(PLUGINS);
        }
        wanted.sort_unstable();
        let names: Vec<&str> = names.lines().collect();
        assert_eq!(names, wanted, "{program} {verb}");
    }
}

#[test]
fn symbolic_links_and_other_files_are_saved_too() {
    requires!("cni:bridge", "cni:vlan");
    let fixture = with_go();
    fixture.run_all(&format!("ln -sf /usr/lib/cni/bridge {BIN}/bridge\nln -sf /nowhere {BIN}/loopback\nrm {BIN}/host-local"));
    fixture.write(&format!("{BIN}/host-local"), "not a program");
    fixture
        .under(&format!("/run/gangplank install {BIN}"))
        .success();
    assert_eq!(installed(&fixture), [true; PLUGINS.len()]);
    assert!(is_same(
        &fixture,
        "/usr/lib/cni/bridge",
        &format!("{BIN}/bridge.orig")
    ));
    fixture
        .under(&format!("/run/gangplank uninstall {BIN}"))
        .success();
    assert_eq!(
        fixture.run(&format!("readlink {BIN}/bridge {BIN}/loopback")),
        "/usr/lib/cni/bridge\n/nowhere\n"
    );
    assert_eq!(fixture.read(&format!("{BIN}/host-local")), "not a program");
}

#[test]
fn an_unwritable_directory_is_unchanged() {
    requires!("cni:bridge", "cni:vlan");
    let fixture = with_go();
    let before = fixture.files(BIN);
    fixture.run_all(&format!(
        "mount --bind {BIN} {BIN}\nmount -o remount,bind,ro {BIN}"
    ));
    let failed = fixture.under(&format!("/run/gangplank install {BIN}"));
    assert!(
        failed.failure().contains(BIN) && failed.stderr.contains("Read-only file system"),
        "{failed:?}"
    );
    assert!(
        !failed.stderr.contains("as root"),
        "not a usage error: {failed:?}"
    );
    assert_eq!(fixture.files(BIN), before);
    let file = fixture.gangplank("install /run/gangplank");
    assert!(file.failure().contains("/run/gangplank"), "{file:?}");
}

#[test]
fn a_wrapper_script_is_saved_and_not_executed_to_identify_it() {
    requires!();
    let fixture = Fixture::new();
    let wrapper = "#!/bin/sh\ntouch /run/ran-with-$CNI_COMMAND\necho 'CNI bridge plugin v1.9.1+gangplank.0.1.0 (gangplank)' >&2\nexec /run/gangplank-real \"$@\"\n";
    let mark = "\u{1}gangplank-build\u{2}0.1.0\u{3}";
    for content in [
        wrapper.to_owned(),
        format!("{wrapper}# {mark}\n"),
        mark.to_owned(),
    ] {
        fixture.run_all(&format!("rm -rf {BIN}\nmkdir -p {BIN}"));
        fixture.write_executable(&format!("{BIN}/bridge"), &content);
        let answer = fixture.gangplank(&format!("install {BIN}"));
        assert!(
            answer.success().contains("is kept as bridge.orig"),
            "{answer:?}"
        );
        assert_eq!(fixture.read(&format!("{BIN}/bridge.orig")), content);
        let back = fixture.gangplank(&format!("uninstall {BIN}"));
        assert!(back.success().contains("bridge.orig is back"), "{back:?}");
        assert_eq!(fixture.read(&format!("{BIN}/bridge")), content);
        let running = fixture.gangplank(&format!("uninstall {BIN}"));
        assert!(running.success().contains("and stays"), "{running:?}");
    }
    // It is executed only without CNI_COMMAND, for the message.
    assert!(fixture.run("ls /run").contains("ran-with-\n"));
}

#[test]
fn earlier_saved_files_are_not_overwritten() {
    requires!("cni:bridge", "cni:vlan");
    let fixture = with_go();
    let put = |text: &str| {
        fixture.write("/run/newer", text);
        fixture.run(&format!("cp --remove-destination /run/newer {BIN}/bridge"));
    };
    let install = || {
        fixture
            .under(&format!("/run/gangplank install {BIN}"))
            .success()
            .to_owned()
    };
    install();
    put("#!/bin/sh\n# second\n");
    assert!(install().contains("the bridge.orig of before as bridge.orig.1"));
    put("#!/bin/sh\n# third\n");
    assert!(install().contains("the bridge.orig of before as bridge.orig.2"));
    // The same file is not saved twice.
    put("#!/bin/sh\n# third\n");
    assert!(!install().contains("of before"));
    let orig = |suffix: &str| format!("{BIN}/bridge.orig{suffix}");
    assert!(is_same(&fixture, &orig(".1"), "/usr/lib/cni/bridge"));
    assert!(
        fixture.read(&orig(".2")).contains("second") && fixture.read(&orig("")).contains("third")
    );
    fixture
        .under(&format!("/run/gangplank uninstall {BIN}"))
        .success();
    assert!(fixture.read(&format!("{BIN}/bridge")).contains("third"));
}

/// Runs the installer as the DaemonSet's container: as root with only these capabilities.
fn install_with(fixture: &Fixture, capabilities: &str) -> crate::support::Answer {
    let sets = ["--bounding-set", "--inh-caps"].map(|set| format!("{set} {capabilities}"));
    fixture.under(&format!(
        "setpriv {} --no-new-privs /run/gangplank install {BIN}",
        sets.join(" ")
    ))
}

#[test]
fn the_capabilities_of_the_daemonset_suffice_for_a_directory_of_another_user() {
    requires!("cni:bridge", "cni:vlan", "setpriv");
    let manifest = crate::support::example("install/daemonset.yaml");
    let lines: Vec<&str> = manifest.lines().map(str::trim).collect();
    assert!(lines.contains(&r#"drop: ["ALL"]"#), "{manifest}");
    assert!(
        lines.contains(&r#"add: ["DAC_OVERRIDE", "FOWNER"]"#),
        "{manifest}"
    );
    // As installed by kubespray: directory and programs belong to the user kube.
    let fixture = with_go();
    fixture.run_all(&format!("chown -R 997:997 {BIN}\nchmod 755 {BIN}"));
    let before = fixture.files(BIN);
    let failed = install_with(&fixture, "-all");
    let answer = failed.failure();
    for word in [
        "Permission denied",
        BIN,
        "belongs to user 997",
        "DAC_OVERRIDE",
        "FOWNER",
    ] {
        assert!(answer.contains(word), "{word}: {failed:?}");
    }
    assert_eq!(fixture.files(BIN), before);
    for program in PLUGINS {
        // With the sticky bit, and programs of another owner.
        fixture.run_all(&format!(
            "chown 996:996 {BIN}/{program}\nchmod 4750 {BIN}/{program}\nchmod 1775 {BIN}"
        ));
    }
    let answer = install_with(&fixture, "-all,+dac_override,+fowner");
    assert_eq!(
        answer.success().matches("is kept as").count(),
        PLUGINS.len(),
        "{answer:?}"
    );
    assert_eq!(installed(&fixture), [true; PLUGINS.len()]);
    assert!(is_same(
        &fixture,
        &format!("{BIN}/bridge.orig"),
        "/usr/lib/cni/bridge"
    ));
}

#[test]
fn a_symbolic_link_at_the_temporary_file_is_not_followed() {
    requires!();
    let fixture = Fixture::new();
    fixture.run_all(&format!("mkdir -p {BIN}\nln -s /run/victim {BIN}/.gangplank.new\nln -s /run/victim {BIN}/.bridge.new"));
    fixture.write("/run/victim", "precious");
    fixture.gangplank(&format!("install {BIN}")).success();
    assert_eq!(fixture.read("/run/victim"), "precious");
    assert_eq!(
        fixture.run(&format!("ls -A {BIN}")),
        format!("{}\n", PLUGINS.join("\n"))
    );
}
