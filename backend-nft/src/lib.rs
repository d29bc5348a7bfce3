//! The nftables backend: size-class dispatch maps
