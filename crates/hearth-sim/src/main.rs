//! `cargo xtask sim`.

fn main() -> std::process::ExitCode {
    hearth_sim::run()
}
