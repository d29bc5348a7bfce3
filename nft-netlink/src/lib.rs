//! The nf_tables netlink protocol: typed objects, rules, batches
