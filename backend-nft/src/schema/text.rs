//! How nft writes a class id: `major:minor` in hexadecimal.

use std::fmt;

pub(crate) struct ClassId(pub(crate) u32);

impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.0 >> 16, self.0 & 0xffff)
    }
}
