//! What the program says of itself against what is true: the oracle's answers, and what packets do.

mod decisions;
mod kernel;
mod packets;
