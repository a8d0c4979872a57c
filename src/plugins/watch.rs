//! Changes of the folder, as they come.
