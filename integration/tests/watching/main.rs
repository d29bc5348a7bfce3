//! What `trace`, `flows` and `top` say of real packets, in every mode, and the metrics of single Services.

mod flows;
mod metrics;
mod rig;
mod trace;
