//! What people see of a real node's state, at the widths of two terminals. `SWITCHYARD_GOLDEN=write` writes the files anew; what
//! has changed is for the reviewer of the commit to judge.

use std::path::{Path, PathBuf};

use insight::{state::Filter, table::Look};
use proxy_core::model::ServiceName;

use super::{Arguments, Verb, common::Common, endpoints, explain, services};
use clap::Parser as _;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/insight");

fn explain_options(arguments: &[&str]) -> explain::Options {
    let words = ["kube-proxy", "explain"].into_iter().chain(arguments.iter().copied());
    match Arguments::try_parse_from(words).expect("good arguments").verb {
        Verb::Explain(options) => options,
        _ => panic!("not explain"),
    }
}

#[test]
fn what_people_see_is_as_it_was() {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../insight/tests/data/node.ndjson"));
    let common = Common::of_file(&file);
    let state = common.state(Filter::default()).expect("a state");
    let engine = common.engine(&state);
    let name = |text: &str| ServiceName::new("lab", text);
    let mut differs = Vec::new();
    for width in [80, 160] {
        for wide in [false, true] {
            let look = Look { width: Some(width), wide, colour: false };
            let mut check = |title: &str, text: String| {
                let suffix = if wide { "-wide" } else { "" };
                let path = Path::new(DATA).join(format!("{title}-{width}{suffix}.txt"));
                if std::env::var_os("SWITCHYARD_GOLDEN").is_some() {
                    std::fs::create_dir_all(DATA).expect("a folder");
                    std::fs::write(&path, &text).expect("a file");
                }
                let known = std::fs::read_to_string(&path).unwrap_or_default();
                if known != text {
                    differs.push(format!("{}:\n{text}", path.display()));
                }
                let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
                // What cannot give way so far is whole.
                let narrow = ["services", "endpoints"].contains(&title) && !wide;
                assert!(!narrow || longest <= width, "{title} at {width}: {longest}\n{text}");
            };
            check("services", services::rendered(&state, &engine, None, look));
            check("service", services::rendered(&state, &engine, Some(&name("local")), look));
            check("endpoints", endpoints::rendered(&state, &engine, &name("guarded"), look));
            check("endpoints-hinted", endpoints::rendered(&state, &engine, &name("twin"), look));
            if !wide {
                for (title, question) in [
                    ("explain-pod", &["10.0.1.12", "lab/web:http"][..]),
                    ("explain-why-not", &["192.168.70.100", "node:30080", "--why-not", "10.0.2.11"]),
                    ("explain-outside", &["outside", "198.51.100.5:80"]),
                    ("explain-nobody", &["node", "172.30.0.99:80"]),
                ] {
                    let text =
                        explain::rendered(&explain_options(question), &common, look).expect("an answer");
                    check(title, text);
                }
            }
        }
    }
    assert!(differs.is_empty(), "{}", differs.join("\n"));
}
