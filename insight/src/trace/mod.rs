//! What became of single packets: which of them to trace ([`filter`]), what the kernel told of one put together
//! ([`story`]), and that in words ([`tell`]); [`refused`] marks the first packets of all connections to Services.

pub mod filter;
pub mod refused;
pub mod story;
pub mod tell;
