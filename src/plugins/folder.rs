//! The folder of plugins: whose files they are, and their private copies.
