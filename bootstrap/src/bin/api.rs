use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::binaries::api::main()
}
