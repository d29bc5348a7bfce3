//! What somebody else's nf_tables transaction on the same node takes: a CNI plugin's, a firewall's.

use std::time::Instant;

use anyhow::{Context as _, Result};
use netlink::{Protocol, Socket};
use nft_netlink::{Batch, Element, Family, Field, Set, Table};

use super::site::Site;

const TABLE: Table<'_> = Table::new(Family::Ip, "scale-neighbour");
const SET: &str = "blocked";

/// Seconds that each of `count` transactions took: one element added to, or taken from, a set of a table of its own.
pub(crate) fn measure(site: &Site, count: usize) -> Result<Vec<f64>> {
    site.node.run(|| {
        let mut socket = Socket::open(Protocol::Netfilter).context("an nf_tables socket")?;
        let mut batch = Batch::new();
        batch.add_table(TABLE, None);
        batch.add_set(TABLE, &Set::new(SET, &[Field::IPV4_ADDRESS]));
        batch.commit(&mut socket).context("making a table beside")?;
        let element = Element::key(&[198, 51, 100, 7]);
        let mut times = Vec::with_capacity(count);
        for round in 0..count {
            let mut batch = Batch::new();
            if round % 2 == 0 {
                batch.add_elements(TABLE, SET).push(&element);
            } else {
                batch.delete_elements(TABLE, SET).push(&element);
            }
            let begun = Instant::now();
            batch.commit(&mut socket).context("a transaction in a table beside")?;
            times.push(begun.elapsed().as_secs_f64());
        }
        let mut batch = Batch::new();
        batch.delete_table(TABLE);
        batch.commit(&mut socket).context("removing the table beside")?;
        Ok(times)
    })?
}

#[cfg(test)]
mod tests {
    use netlink::{Protocol, Socket};
    use nft_netlink::generation::generation;

    use super::measure;
    use crate::scale::site::Site;

    #[test]
    fn every_transaction_that_is_timed_reaches_the_kernel() {
        let site = Site::build().expect("a network; run as root");
        let now = || {
            let asked = site.node.run(|| generation(&mut Socket::open(Protocol::Netfilter)?));
            asked.expect("inside the node").expect("a generation")
        };
        let before = now();
        let times = measure(&site, 20).expect("transactions");
        assert_eq!(times.len(), 20);
        // And one each to make and to remove the table.
        assert_eq!(now() - before, 22);
    }
}
