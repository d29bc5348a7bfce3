//! Netlink framing, batched sockets, links, addresses, routes and conntrack
