//! The IPVS backend: virtual servers and local routes
