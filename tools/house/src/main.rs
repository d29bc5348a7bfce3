//! Holds the repository against its own rules, and names each place that breaks one: file, line, what is wrong.
//!
//!     cargo run -q -p house           all of them
//!     cargo run -q -p house floors    which rooms each crate has, and who imports whom: what `rooms` should say

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.ancestors().nth(2).expect("this package is two folders deep in the repository");
    if std::env::args().nth(1).as_deref() == Some("floors") {
        print!("{}", house::floors(root));
        return ExitCode::SUCCESS;
    }
    let wrongs = house::check(root);
    wrongs.iter().for_each(|wrong| eprintln!("{wrong}"));
    if wrongs.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
