//! What elements cost: to encode, to load in one transaction, and to change one. Prints medians; needs root.
//!
//!     cargo run --release -p switchyard-nft-netlink --example load [elements]

use std::time::{Duration, Instant};

use netlink::{Protocol, Socket};
use nft_netlink::{Batch, Element, Family, Field, Set, Table, Template, monitor::NftMonitor};
use nix::sched::{CloneFlags, unshare};

const TABLE: Table<'_> = Table::new(Family::Ip, "bench");
const KEY: [Field; 4] = [Field::IP_DESTINATION, Field::L4_PROTOCOL, Field::DESTINATION_PORT, Field::SLOT];
const DATA: [Field; 2] = [Field::IP_DESTINATION, Field::DESTINATION_PORT];
const ENDPOINTS: Set<'_> = Set::map("endpoints", &KEY, &DATA);
static TEMPLATE: Template = Template::new(ENDPOINTS.key_length() as usize, ENDPOINTS.data_length() as usize);

fn main() {
    let elements = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(100_000);
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
    let mut socket = Socket::open(Protocol::Netfilter).expect("a kernel with nfnetlink");
    let mut batch = Batch::new();
    let per_element = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(elements);

    let fixed = median(9, || time(|| fill(&mut batch, elements)));
    println!("encode, template: {:.1} ns an element", per_element(fixed));
    println!("{} elements in {} messages, {} bytes", batch.elements(), batch.messages(), batch.len_bytes());
    let general = median(9, || {
        time(|| {
            batch.clear();
            for number in 0..elements {
                let (key, data) = endpoint(number);
                batch.add_elements(TABLE, "endpoints").push(&Element::value(&key, &data));
            }
        })
    });
    println!("encode, general:  {:.1} ns an element", per_element(general));

    let mut load = |monitored: bool, size: Option<u32>| {
        median(5, || {
            let _monitor = monitored.then(|| NftMonitor::open().expect("a monitor"));
            empty_table(&mut socket, size);
            fill(&mut batch, elements);
            time(|| batch.commit(&mut socket).expect("loaded"))
        })
    };
    println!("load: {:.1} ms", load(false, None).as_secs_f64() * 1e3);
    println!(
        "load, size given: {:.1} ms",
        load(false, Some(elements.next_power_of_two() * 2)).as_secs_f64() * 1e3
    );
    println!("load, somebody listens to events: {:.1} ms", load(true, None).as_secs_f64() * 1e3);

    let mut one = |monitored: bool| {
        let _monitor = monitored.then(|| NftMonitor::open().expect("a monitor"));
        median(201, || {
            time(|| {
                let (key, data) = endpoint(elements / 2);
                batch.clear();
                batch.delete_elements(TABLE, "endpoints").push_fixed(&KEY_ONLY, &key, &[]);
                batch.add_elements(TABLE, "endpoints").push_fixed(&TEMPLATE, &key, &data);
                batch.commit(&mut socket).expect("replaced");
            })
        })
    };
    println!("replace one element: {:.1} us", one(false).as_secs_f64() * 1e6);
    println!("replace one element, somebody listens: {:.1} us", one(true).as_secs_f64() * 1e6);
}

static KEY_ONLY: Template = Template::new(ENDPOINTS.key_length() as usize, 0);

fn endpoint(number: u32) -> ([u8; 16], [u8; 8]) {
    let (mut key, mut data) = ([0; 16], [0; 8]);
    key[..4].copy_from_slice(&(0xac1e_0000 + number / 10).to_be_bytes());
    key[4] = 6;
    key[8..10].copy_from_slice(&80u16.to_be_bytes());
    key[12..].copy_from_slice(&(number % 10).to_ne_bytes());
    data[..4].copy_from_slice(&(0x0a00_0000 + number).to_be_bytes());
    data[4..6].copy_from_slice(&8080u16.to_be_bytes());
    (key, data)
}

fn fill(batch: &mut Batch, elements: u32) {
    batch.clear();
    let mut list = batch.add_elements(TABLE, "endpoints");
    for number in 0..elements {
        let (key, data) = endpoint(number);
        list.push_fixed(&TEMPLATE, &key, &data);
    }
}

fn empty_table(socket: &mut Socket, size: Option<u32>) {
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.delete_table(TABLE);
    batch.add_table(TABLE, None);
    batch.add_set(TABLE, &Set { size, ..ENDPOINTS });
    batch.commit(socket).expect("a table");
}

fn time(work: impl FnOnce()) -> Duration {
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(runs: usize, mut run: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..runs).map(|_| run()).collect();
    times.sort_unstable();
    times[runs / 2]
}
