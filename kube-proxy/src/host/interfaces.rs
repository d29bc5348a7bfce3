//! Follows the addresses of the node's interfaces.

use std::{thread, time::Duration};

use anyhow::Context as _;
use netlink::address::{self, AddressMonitor};
use proxy_core::model::Input;

use crate::{engine::mailbox::Mailbox, supervisor::Supervisor};

/// How often the addresses are read though no change was told of.
const RECHECK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// A list goes to the engine before this returns.
pub(crate) fn follow(messages: Mailbox, supervisor: &Supervisor) -> anyhow::Result<()> {
    // The monitor first: what changes while the list is read is told afterwards.
    let mut monitor = AddressMonitor::open().context("interface addresses cannot be watched")?;
    let mut socket =
        netlink::Socket::open(netlink::Protocol::Route).context("interface addresses cannot be read")?;
    let mut tell = move || -> anyhow::Result<bool> {
        let all = address::list(&mut socket).context("interface addresses cannot be read")?;
        // Virtual IPs bound as addresses are not the node's own.
        let device = netlink::link::find(&mut socket, backend_ipvs::settings::DEVICE)
            .context("interfaces cannot be read")?
            .map(|device| device.index);
        let own = all.iter().filter(|found| !found.unusable && Some(found.interface) != device);
        let usable = own.map(|found| found.address).collect();
        Ok(messages.send(Input::InterfaceAddresses(usable).into()).is_ok())
    };
    tell()?;
    supervisor.thread("addresses", move || {
        let mut patience = RECHECK;
        loop {
            let news = monitor.wait(patience).context("interface addresses cannot be watched");
            patience = match news.and_then(|_| tell()) {
                Ok(true) => RECHECK,
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "Interface addresses cannot be followed; trying again");
                    thread::sleep(RETRY);
                    // Nobody knows what was missed: the list is read again without waiting for news.
                    Duration::ZERO
                }
            };
        }
    })?;
    Ok(())
}
