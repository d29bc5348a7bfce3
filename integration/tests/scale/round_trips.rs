//! The round-trip benchmark on a small cluster: every kind of destination has a figure, and leads where its name says.

use std::fs;
use std::time::Duration;

use integration::scale::contender::Mode;
use integration::scale::round_trip::{RoundTripPlan, RoundTrips, measure};
use integration::scale::round_trip_table;

use super::{folder, own};

#[test]
fn every_kind_of_destination_has_a_figure_and_what_is_saved_is_read_back() {
    let folder = folder("round-trip");
    let plan = RoundTripPlan {
        contenders: [Mode::Nftables, Mode::Iptables].map(own).to_vec(),
        shape: "10x2".parse().expect("a shape"),
        turns: 2,
        limit: Duration::from_secs(120),
        folder: folder.clone(),
    };
    // It fails by itself where a Service leads to an endpoint of the other kind of node.
    let trips = measure(&plan, vec!["round-trip".to_owned()]).expect("it can be measured");
    assert_eq!((trips.columns.len(), trips.rows.len()), (3, 16));
    for row in &trips.rows {
        let has =
            row.figures.iter().map(|figure| figure.is_some_and(|one| one.p10 > 0.0 && one.p50 >= one.p10));
        let bare = row.to.starts_with("the endpoint itself");
        assert_eq!(has.collect::<Vec<_>>(), [bare, true, true], "{row:?}");
    }
    let path = folder.join("round-trips.json");
    trips.write(&path).expect("the folder is writable");
    let again = RoundTrips::read(&path).expect("it was saved");
    assert_eq!(again, trips);
    assert!(round_trip_table::markdown(&again).starts_with("- Worst of switchyard nftables: "));
    fs::remove_dir_all(folder).expect("the folder is ours");
}
