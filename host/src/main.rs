//! The `chalet` binary.

fn main() -> std::process::ExitCode {
    chalet::cli::main()
}
