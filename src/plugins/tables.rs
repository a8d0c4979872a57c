//! Tables and views of plugins: from their structural declaration to DDL, there before the first row that needs them.
