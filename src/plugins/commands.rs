//! The `plugins` subcommands.
