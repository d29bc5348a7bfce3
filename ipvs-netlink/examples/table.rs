//! Prints the virtual servers of this network namespace with their destinations, as `ipvsadm -Ln` does. Needs root.

use ipvs_netlink::{Error, Socket};

fn main() -> Result<(), Error> {
    let mut ipvs = Socket::open()?;
    let info = ipvs.info()?;
    let (major, minor, patch) = info.version;
    println!("IPVS {major}.{minor}.{patch}, {} buckets for connections", info.connection_table_size);
    let mut servers = ipvs.services()?;
    servers.sort_unstable_by_key(|entry| entry.service.key);
    for server in servers {
        let service = server.service;
        println!("{} {}, {} connections so far", service.key, service.scheduler, server.stats.connections);
        for entry in ipvs.destinations(&service.key)? {
            let to = entry.destination;
            println!(
                "  -> {} port {} {:?} weight {}: {} active, {} inactive",
                to.address,
                to.port,
                to.forwarding,
                to.weight,
                entry.active_connections,
                entry.inactive_connections
            );
        }
    }
    Ok(())
}
