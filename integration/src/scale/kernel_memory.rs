//! Memory that the whole kernel uses for its objects: coarse, but there on every machine without any privilege.

use std::fs;
use std::io;

/// Slab, vmalloc and per-CPU memory, in bytes.
pub(crate) fn now() -> io::Result<u64> {
    Ok(of(&fs::read_to_string("/proc/meminfo")?))
}

fn of(meminfo: &str) -> u64 {
    let kilobytes = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    let counted = |line: &&str| ["Slab:", "VmallocUsed:", "Percpu:"].iter().any(|key| line.starts_with(key));
    meminfo.lines().filter(counted).filter_map(kilobytes).sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn only_memory_of_objects_is_counted() {
        let text = "MemTotal: 100 kB\nSlab:   5 kB\nSReclaimable: 3 kB\nVmallocUsed: 2 kB\nPercpu: 1 kB\n";
        assert_eq!(of(text), 8 * 1024);
    }
}
