//! The check before a plugin is taken into use, in a process of its own.
