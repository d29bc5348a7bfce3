//! The order of the rooms of each crate, as `tools/house/rooms` gives it.

use std::collections::BTreeMap;

/// On which floor each room of a crate is: a higher number is further down.
pub(crate) type Order = BTreeMap<String, usize>;

#[derive(Debug, Default)]
pub(crate) struct Rooms(BTreeMap<String, Order>);

impl Rooms {
    /// `[crate]`, then its floors from the roof to the ground, a line each; rooms on one floor do not know each other.
    pub(crate) fn parse(text: &str, wrongs: &mut Vec<String>) -> Self {
        let mut rooms = Self::default();
        let mut current: Option<String> = None;
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                rooms.0.insert(name.to_owned(), Order::new());
                current = Some(name.to_owned());
                continue;
            }
            let Some(order) = current.as_ref().and_then(|name| rooms.0.get_mut(name)) else { continue };
            for room in line.split_whitespace() {
                if order.insert(room.to_owned(), number).is_some() {
                    wrongs.push(format!("tools/house/rooms:{}: {room} is on two floors", number + 1));
                }
            }
        }
        rooms
    }

    pub(crate) fn of(&self, name: &str) -> Option<&Order> {
        self.0.get(name)
    }
}
