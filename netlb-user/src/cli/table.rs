//! Tables for people: columns as wide as they must be, two blanks between them.

/// A table under construction.
pub(super) struct TextTable {
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// With these headings.
    pub(super) fn new(headings: &[&str]) -> Self {
        TextTable { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row of as many cells as there are headings. An empty cell shows as `-`.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let dash = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        self.rows.push(cells.into_iter().map(dash).collect());
    }

    /// The lines, none with blanks at its end.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let pad = width - cell.chars().count() + 2;
                line.extend(std::iter::repeat_n(' ', pad));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_empty_cells_show() {
        let mut table = TextTable::new(&["SERVICE", "N"]);
        table.row(["shop/frontend:http".to_owned(), "3".to_owned()]);
        table.row(["ä".to_owned(), String::new()]);
        let want = "SERVICE             N\nshop/frontend:http  3\nä                   -\n";
        assert_eq!(table.render(), want);
    }
}
