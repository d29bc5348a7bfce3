//! Plans carried out by a real kernel, and real packets sent through what they made.

mod compare;
mod driver;
mod rig;

mod lifecycle;
mod packets;
mod policies;
mod scale;
