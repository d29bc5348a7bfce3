//! What one node's engine was told and what it did, as a file that can be read anywhere; and what follows from it: the routes
//! that the engine decides on ([`engine`]), who has which address ([`names`]), tables for people ([`table`]).
//!
//! No I/O beside what a caller hands in to read from or write to, no clock.

#![warn(missing_docs)]

pub mod anonymise;
pub mod decision;
pub mod digest;
pub mod endpoints;
pub mod engine;
pub mod flows;
pub mod names;
pub mod state;
pub mod table;
pub mod text;
pub mod trace;
pub mod traffic;
