//! Build script: the linker discards unwind tables, 370 KB.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.cargo/no-unwind-tables.ld");
    println!("cargo::rerun-if-changed={script}");
    // Only in a release build, whose panics abort.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
    }
}
