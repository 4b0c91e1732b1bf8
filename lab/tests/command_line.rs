//! The command line of the harness.

use std::process::Command;

#[test]
fn without_servers_the_error_names_the_script_that_starts_them() {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["run", "--minutes", "1"])
        .env_remove("TEST_POSTGRES_URL")
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("inside `scripts/services run`"), "{told}");
}

#[test]
fn the_patches_of_all_mutants_apply() {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["mutants", "--check-patches"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
