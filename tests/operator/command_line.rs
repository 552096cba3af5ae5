//! Help, invalid arguments, completions and the manual page.

use crate::fixture::Fixture;
use crate::support::{PATH, note, requires};

const COMMANDS: [&str; 9] = [
    "status",
    "doctor",
    "reconcile",
    "routes",
    "conf",
    "install",
    "uninstall",
    "completions",
    "man",
];

fn is_installed(program: &str) -> bool {
    PATH.split(':')
        .any(|dir| std::path::Path::new(dir).join(program).exists())
}

#[test]
fn each_command_has_help() {
    requires!();
    let fixture = Fixture::new();
    let help = fixture.gangplank("--help");
    for command in COMMANDS {
        assert!(
            help.success().contains(&format!("  {command}")),
            "{command}: {help:?}"
        );
        let own = fixture.gangplank(&format!("{command} --help"));
        assert!(
            own.success()
                .contains(&format!("Usage: gangplank {command}")),
            "{own:?}"
        );
        assert_eq!(
            fixture.gangplank(&format!("help {command}")).success(),
            own.stdout
        );
    }
    assert!(help.stdout.contains("Exit status: 0 done"), "{help:?}");
    assert!(
        fixture
            .gangplank("--version")
            .success()
            .starts_with("gangplank 0.")
    );
}

#[test]
fn invalid_arguments_are_reported_on_stderr_with_exit_status_2() {
    requires!();
    let fixture = Fixture::new();
    for line in [
        "",
        "bogus",
        "--bogus",
        "status --bogus",
        "status a b",
        "doctor net",
        "reconcile --json=yes",
        "routes --metric -1",
        "routes --metric x",
        "completions",
        "completions powershell",
        "conf --mtu",
        "install a b",
        "status --color blue",
    ] {
        let answer = fixture.gangplank(line);
        assert_eq!(
            (answer.code, &*answer.stdout),
            (Some(2), ""),
            "{line}: {answer:?}"
        );
        assert!(
            answer.stderr.contains("Usage") || answer.stderr.contains("--help"),
            "{line}: {answer:?}"
        );
    }
    let near = fixture.gangplank("staus");
    assert_eq!(near.code, Some(2));
}

#[test]
fn shells_accept_their_completions() {
    requires!("bash");
    let fixture = Fixture::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = fixture.gangplank(&format!("completions {shell}"));
        fixture.write(&format!("/run/{shell}"), script.success());
        if is_installed(shell) {
            fixture.run(&format!("{shell} -n /run/{shell}"));
        } else {
            note(&format!("cannot run: {shell} is not installed"));
        }
        for command in COMMANDS {
            assert!(script.stdout.contains(command), "{shell}: {command}");
        }
    }
    fixture.write("/run/try", "source /run/bash; COMP_WORDS=(gangplank do); COMP_CWORD=1; _gangplank gangplank do gangplank; echo ${COMPREPLY[@]}\n");
    assert_eq!(fixture.run("bash /run/try"), "doctor\n");
    fixture.write("/run/try", "source /run/bash; COMP_WORDS=(gangplank doctor --f); COMP_CWORD=2; _gangplank gangplank --f doctor; echo ${COMPREPLY[@]}\n");
    assert_eq!(fixture.run("bash /run/try"), "--fix\n");
}

#[test]
fn the_manual_page_renders_without_warnings() {
    requires!();
    let fixture = Fixture::new();
    let page = fixture.gangplank("man");
    fixture.write("/run/gangplank.1", page.success());
    for command in COMMANDS {
        assert!(
            page.stdout
                .contains(&format!("GANGPLANK {}", command.to_uppercase())),
            "{command}"
        );
    }
    if !is_installed("man") || !is_installed("groff") {
        note("cannot run: man and groff are not installed");
        return;
    }
    fixture.write(
        "/run/render",
        "LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings -l /run/gangplank.1 2>&1 | cat\n",
    );
    let text = fixture.run("bash /run/render");
    assert!(
        text.contains("doctor") && text.contains("Repair what is safe to repair"),
        "{text}"
    );
    assert!(!text.contains("warning"), "{text}");
}
