//! Tables for people: aligned columns, cut to the width of a terminal by rules that lose as little as possible.
//!
//! The last column is never padded. Where all of it does not fit, columns that may be shortened give way, the widest first, down
//! to their least width; a cell that is cut ends in `…`. What does not fit even so is printed whole: a line that wraps says
//! more than one that is cut. Without a terminal nothing is cut.

use std::fmt::Write as _;

/// How a cell looks on a terminal with colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// As it is.
    #[default]
    Plain,
    /// Well.
    Good,
    /// To be looked at.
    Warn,
    /// Wrong.
    Bad,
    /// Of less interest.
    Dim,
}

impl Style {
    /// What begins it on a terminal (SGR of ECMA-48).
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Dim => "\x1b[2m",
        }
    }

    /// The text in this style, where there are colours.
    pub fn paint(self, text: &str, colour: bool) -> String {
        match self.code() {
            code if colour && !code.is_empty() => format!("{code}{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A text in a style. Control characters become `?`: what names a cluster's users choose must not steer a terminal.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        let mut text: String = text.into();
        if text.contains(char::is_control) {
            text = text.replace(char::is_control, "?");
        }
        Self { text, style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::Plain)
    }
}

/// One column.
#[derive(Debug, Clone, Copy)]
struct Column {
    title: &'static str,
    right: bool,
    /// It may be cut down to this.
    least: Option<usize>,
    /// Only with `-o wide`.
    wide: bool,
}

/// A table that is made row by row.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// How a table is to be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns of the terminal; `None`: nothing is cut.
    pub width: Option<usize>,
    /// Columns that are of interest only sometimes are shown as well.
    pub wide: bool,
    /// The terminal shows colours.
    pub colour: bool,
}

impl Table {
    /// Without columns.
    pub fn new() -> Self {
        Self::default()
    }

    /// A column that is never cut.
    #[must_use]
    pub fn column(self, title: &'static str) -> Self {
        self.with(Column { title, right: false, least: None, wide: false })
    }

    /// A column of numbers.
    #[must_use]
    pub fn number(self, title: &'static str) -> Self {
        self.with(Column { title, right: true, least: None, wide: false })
    }

    /// A column that may be cut, down to so many characters.
    #[must_use]
    pub fn text(self, title: &'static str, least: usize) -> Self {
        self.with(Column { title, right: false, least: Some(least), wide: false })
    }

    /// The last column is shown with `-o wide` only.
    #[must_use]
    pub fn wide(mut self) -> Self {
        if let Some(column) = self.columns.last_mut() {
            column.wide = true;
        }
        self
    }

    fn with(mut self, column: Column) -> Self {
        self.columns.push(column);
        self
    }

    /// Another row; cells that are missing are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut cells: Vec<Cell> = cells.into_iter().collect();
        cells.resize_with(self.columns.len(), Cell::default);
        self.rows.push(cells);
    }

    /// There is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The whole table, with a line of titles; empty if there is no row.
    pub fn print(&self, look: Look) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let shown: Vec<usize> =
            (0..self.columns.len()).filter(|at| look.wide || !self.columns[*at].wide).collect();
        let widths = self.widths(&shown, look.width);
        let titles: Vec<Cell> = self.columns.iter().map(|column| Cell::from(column.title)).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for (place, at) in shown.iter().enumerate() {
                let (cell, column, width) = (&row[*at], &self.columns[*at], widths[place]);
                let cut = cut(&cell.text, width);
                let padding = " ".repeat(width.saturating_sub(length(&cut)));
                let painted = cell.style.paint(&cut, look.colour);
                if place > 0 {
                    line.push_str("  ");
                }
                let last = place + 1 == shown.len();
                let _ = match (column.right, last) {
                    (true, _) => write!(line, "{padding}{painted}"),
                    (false, true) => write!(line, "{painted}"),
                    (false, false) => write!(line, "{painted}{padding}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self, shown: &[usize], width: Option<usize>) -> Vec<usize> {
        let widest = |at: &usize| {
            let cells = self.rows.iter().map(|row| length(&row[*at].text));
            cells.max().unwrap_or(0).max(length(self.columns[*at].title))
        };
        let mut widths: Vec<usize> = shown.iter().map(widest).collect();
        let Some(limit) = width else { return widths };
        let whole = widths.clone();
        loop {
            let total = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
            if total <= limit {
                return widths;
            }
            let give = |place: &usize| {
                let column = self.columns[shown[*place]];
                column.least.is_some_and(|least| widths[*place] > least.max(length(column.title)))
            };
            let Some(place) = (0..widths.len()).filter(give).max_by_key(|place| widths[*place]) else {
                return whole;
            };
            widths[place] -= 1;
        }
    }
}

/// Characters, each taken as one column: names and addresses of Kubernetes are ASCII.
fn length(text: &str) -> usize {
    text.chars().count()
}

fn cut(text: &str, width: usize) -> String {
    if length(text) <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new().text("NAME", 6).number("COUNT").column("STATE").text("WHY", 5).column("MORE").wide();
        table.row(["default/a-long-name".into(), "7".into(), Cell::new("well", Style::Good)]);
        table.row(["b".into(), "1234".into(), "ill".into(), "because it is so".into(), "x".into()]);
        table
    }

    fn print(width: Option<usize>, wide: bool, colour: bool) -> String {
        table().print(Look { width, wide, colour })
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        assert_eq!(
            print(None, false, false),
            "NAME                 COUNT  STATE  WHY\n\
             default/a-long-name      7  well\n\
             b                     1234  ill    because it is so\n"
        );
        assert!(print(None, true, false).contains("because it is so  x\n"));
    }

    #[test]
    fn the_widest_gives_way_first_and_what_cannot_fit_is_whole() {
        assert_eq!(
            print(Some(40), false, false),
            "NAME          COUNT  STATE  WHY\n\
             default/a-l…      7  well\n\
             b              1234  ill    because it …\n"
        );
        assert_eq!(print(Some(20), false, false), print(None, false, false));
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let painted = print(Some(40), false, true);
        assert!(painted.contains("\u{1b}[32mwell\u{1b}[0m"), "{painted:?}");
        let plain = painted.replace("\u{1b}[32m", "").replace("\u{1b}[0m", "");
        assert_eq!(plain, print(Some(40), false, false));
        assert_eq!(Cell::new("a\u{1b}[2Jb", Style::Plain).text, "a?[2Jb");
    }
}
