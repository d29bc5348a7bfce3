//! Endpoints that end while clients talk to them: pods are marked as terminating, then their endpoints are removed. Pods
//! finish what they have begun, so no connection may break, and new ones must go elsewhere.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::changes::Canaries;
use super::completeness::{self, Completion};
use super::flood::{Flood, Flooded};
use super::held::Held;
use super::server::Server;
use super::site::Site;
use super::workload::Workload;

/// How many connections are held.
const HELD: usize = 64;
/// What cuts connections off may come late.
const AFTERMATH: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(crate) struct Removed {
    /// From the write that marked them as terminating until all new connections went elsewhere.
    pub(crate) completion: Completion,
    pub(crate) broken: usize,
    pub(crate) flooded: Flooded,
    /// Whether the removal itself was acted on within the limit.
    pub(crate) settled: bool,
}

/// Within `limit` it must be done, within `patience` a new connection must be answered. `alive` fails once the contender
/// has ended.
pub(crate) fn measure(
    site: &Site,
    api: &Server,
    workload: &Workload,
    canaries: &mut Canaries<'_>,
    (limit, patience): (Duration, Duration),
    mut alive: impl FnMut() -> Result<()> + Send,
) -> Result<Removed> {
    let to: Vec<SocketAddr> = workload.canaries.iter().copied().cycle().take(HELD).collect();
    let held = Held::open(&site.client, &to)?;
    let flood = Flood::start(&site.client, workload.canaries.clone(), Duration::from_millis(1), patience)?;
    let written = Instant::now();
    let wanted = canaries.retire_all(api)?;
    let completion = completeness::wait_for_canaries(site, workload, &wanted, written, limit, &mut alive)?;
    thread::sleep(AFTERMATH);
    canaries.remove_retired(api)?;
    // No packet shows that an endpoint went which got none any more; a change that was made after it does.
    let followed = matches!(completion, Completion::After(_));
    let settled = followed && site.client.run(|| canaries.change_one(api, limit))??.seen.is_some();
    thread::sleep(AFTERMATH);
    Ok(Removed { completion, flooded: flood.stop(), broken: held.broken(), settled })
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::{Canaries, Completion, HELD, Removed, Server, Site, Workload, measure};
    use crate::apiserver::ApiServer;
    use crate::scale::slow_proxy;

    const DELAY: Duration = Duration::from_millis(200);

    fn removed_under(careless: bool) -> Removed {
        let site = Site::build().expect("a network; run as root");
        let server = ApiServer::start("127.0.0.1:0".parse().expect("an address")).expect("it starts");
        let workload = Workload::generate("2x1".parse().expect("a shape"), 1);
        server.load(workload.objects()).expect("the objects are valid");
        let server = Server::Embedded(server);
        let Server::Embedded(api) = &server else { unreachable!("made above") };
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                slow_proxy::follow(&site, api, &workload, DELAY, &stop, || {
                    if careless {
                        site.node.output(Command::new("conntrack").arg("-F")).expect("conntrack runs");
                    }
                });
            });
            thread::sleep(2 * DELAY);
            let mut canaries = Canaries::new(&workload);
            // However late on a busy machine.
            let limits = (Duration::from_secs(120), Duration::from_secs(60));
            let removed = measure(&site, &server, &workload, &mut canaries, limits, || Ok(()));
            stop.store(true, Ordering::Relaxed);
            removed.expect("it can be measured")
        })
    }

    #[test]
    fn a_proxy_that_forgets_connections_is_found_to_break_them() {
        let removed = removed_under(true);
        assert_eq!(removed.broken, HELD);
        assert!(removed.settled);
    }

    #[test]
    fn a_proxy_with_a_known_delay_that_keeps_connections_breaks_none() {
        let removed = removed_under(false);
        assert_eq!((removed.broken, removed.flooded.failed), (0, 0));
        let Completion::After(took) = removed.completion else { panic!("{removed:?}") };
        assert!(took >= DELAY, "{took:?}");
    }
}
