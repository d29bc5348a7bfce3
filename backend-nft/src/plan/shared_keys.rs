//! Keys that several Service ports need: how many need each, so that none takes away what another still uses.

use std::{collections::HashMap, hash::Hash, net::IpAddr};

/// Counts users of keys, and can take back what was counted since the last [`Counts::keep`].
#[derive(Debug)]
pub(crate) struct Counts<K> {
    users: HashMap<K, u32>,
    log: Vec<(K, u32)>,
}

impl<K: Eq + Hash + Copy> Counts<K> {
    pub(crate) fn new() -> Self {
        Self { users: HashMap::new(), log: Vec::new() }
    }

    /// Whether this is the key's first user.
    pub(crate) fn join(&mut self, key: K) -> bool {
        let users = self.users.entry(key).or_default();
        self.log.push((key, *users));
        *users += 1;
        *users == 1
    }

    /// Whether this was the key's last user.
    pub(crate) fn leave(&mut self, key: K) -> bool {
        let Some(users) = self.users.get_mut(&key) else { return false };
        self.log.push((key, *users));
        *users -= 1;
        let last = *users == 0;
        if last {
            self.users.remove(&key);
        }
        last
    }

    pub(crate) fn keep(&mut self) {
        self.log.clear();
        self.log.shrink_to(1024);
    }

    pub(crate) fn undo(&mut self) {
        while let Some((key, users)) = self.log.pop() {
            if users == 0 {
                self.users.remove(&key);
            } else {
                self.users.insert(key, users);
            }
        }
    }
}

/// An address and port in few bytes: there is one for every endpoint of the cluster.
#[derive(Debug)]
pub(crate) enum Sources {
    V4(Counts<u64>),
    V6(Counts<([u8; 16], u16)>),
}

impl Sources {
    pub(crate) fn new(v4: bool) -> Self {
        if v4 { Self::V4(Counts::new()) } else { Self::V6(Counts::new()) }
    }

    fn packed(addr: IpAddr, port: u16) -> (u64, ([u8; 16], u16)) {
        match addr {
            IpAddr::V4(addr) => (u64::from(addr.to_bits()) << 16 | u64::from(port), ([0; 16], 0)),
            IpAddr::V6(addr) => (0, (addr.octets(), port)),
        }
    }

    pub(crate) fn join(&mut self, addr: IpAddr, port: u16) -> bool {
        let (short, long) = Self::packed(addr, port);
        match self {
            Self::V4(counts) => counts.join(short),
            Self::V6(counts) => counts.join(long),
        }
    }

    pub(crate) fn leave(&mut self, addr: IpAddr, port: u16) -> bool {
        let (short, long) = Self::packed(addr, port);
        match self {
            Self::V4(counts) => counts.leave(short),
            Self::V6(counts) => counts.leave(long),
        }
    }

    pub(crate) fn keep(&mut self) {
        match self {
            Self::V4(counts) => counts.keep(),
            Self::V6(counts) => counts.keep(),
        }
    }

    pub(crate) fn undo(&mut self) {
        match self {
            Self::V4(counts) => counts.undo(),
            Self::V6(counts) => counts.undo(),
        }
    }
}

/// Keys of `clusterips` and `outside-vips`.
pub(crate) type Addresses = Counts<IpAddr>;
