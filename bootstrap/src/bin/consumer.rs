use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::binaries::consumer::main()
}
