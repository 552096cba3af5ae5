//! The command line itself: help, misuse, completions and the manual page.

use crate::site::Site;
use crate::support::{PATH, needs, say};

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

fn has(program: &str) -> bool {
    PATH.split(':')
        .any(|dir| std::path::Path::new(dir).join(program).exists())
}

#[test]
fn each_command_explains_itself() {
    needs!();
    let site = Site::new();
    let help = site.gangplank("--help");
    for command in COMMANDS {
        assert!(
            help.said().contains(&format!("  {command}")),
            "{command}: {help:?}"
        );
        let own = site.gangplank(&format!("{command} --help"));
        assert!(
            own.said().contains(&format!("Usage: gangplank {command}")),
            "{own:?}"
        );
        assert_eq!(
            site.gangplank(&format!("help {command}")).said(),
            own.stdout
        );
    }
    assert!(help.stdout.contains("Exit status: 0 done"), "{help:?}");
    assert!(
        site.gangplank("--version")
            .said()
            .starts_with("gangplank 0.")
    );
}

#[test]
fn misuse_is_said_on_stderr_with_status_2() {
    needs!();
    let site = Site::new();
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
        let answer = site.gangplank(line);
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
    let near = site.gangplank("staus");
    assert_eq!(near.code, Some(2));
}

#[test]
fn completions_are_understood_by_their_shells() {
    needs!("bash");
    let site = Site::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = site.gangplank(&format!("completions {shell}"));
        site.write(&format!("/run/{shell}"), script.said());
        if has(shell) {
            site.run(&format!("{shell} -n /run/{shell}"));
        } else {
            say(&format!("{shell} is not there to read its completions"));
        }
        for command in COMMANDS {
            assert!(script.stdout.contains(command), "{shell}: {command}");
        }
    }
    site.write("/run/try", "source /run/bash; COMP_WORDS=(gangplank do); COMP_CWORD=1; _gangplank gangplank do gangplank; echo ${COMPREPLY[@]}\n");
    assert_eq!(site.run("bash /run/try"), "doctor\n");
    site.write("/run/try", "source /run/bash; COMP_WORDS=(gangplank doctor --f); COMP_CWORD=2; _gangplank gangplank --f doctor; echo ${COMPREPLY[@]}\n");
    assert_eq!(site.run("bash /run/try"), "--fix\n");
}

#[test]
fn the_manual_page_can_be_read() {
    needs!();
    let site = Site::new();
    let page = site.gangplank("man");
    site.write("/run/gangplank.1", page.said());
    for command in COMMANDS {
        assert!(
            page.stdout
                .contains(&format!("GANGPLANK {}", command.to_uppercase())),
            "{command}"
        );
    }
    if !has("man") || !has("groff") {
        say("man and groff are not there to render the page");
        return;
    }
    site.write(
        "/run/render",
        "LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings -l /run/gangplank.1 2>&1 | cat\n",
    );
    let text = site.run("bash /run/render");
    assert!(
        text.contains("doctor") && text.contains("Repair what is safe to repair"),
        "{text}"
    );
    assert!(!text.contains("warning"), "{text}");
}
