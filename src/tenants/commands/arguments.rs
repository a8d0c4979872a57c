//! The form of `ingestion-engine tenants ...` and `keys ...`.

use clap::{Args, Subcommand};
use uuid::Uuid;

use crate::tenants::key::{Origin, Scope};

const TENANTS_EXAMPLES: &str = "\
TENANT is a tenant's id, or its name where only one has it. The commands work on the file of auth.tenants_file; an engine \
that runs takes it within about a second.

Examples:
  ingestion-engine --config engine.toml tenants add acme --tier paid
      a new tenant and its first key, which is shown now and never again
  ingestion-engine --config engine.toml tenants list
  ingestion-engine --config engine.toml tenants disable acme
  ingestion-engine --config engine.toml tenants purge acme
      erases all of its events, also those that are still on their way";

const KEYS_EXAMPLES: &str = "\
TENANT is a tenant's id, or its name where only one has it. KEY is a key's name, or the first digits of its SHA-256 as \
`keys list` shows them. A key is printed once, on standard output, and held only as its SHA-256.

Examples:
  ingestion-engine --config engine.toml keys create acme --name web --origin https://shop.example
  ingestion-engine --config engine.toml keys rotate acme web --grace 7d
      a new key with the same rights; the old one is taken for a week more
  ingestion-engine --config engine.toml keys revoke acme web";

/// Arguments of the `tenants` subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = TENANTS_EXAMPLES)]
pub struct TenantsArgs {
    /// What to do
    #[command(subcommand)]
    pub action: TenantsAction,
}

/// What to do with tenants.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum TenantsAction {
    /// Add a tenant, with a first key that may send events
    Add {
        /// Its name, for people
        name: String,
        /// Its id; one is made without it
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
        /// How long its events are kept: free (24 hours), paid (90 days) or enterprise (see --retention)
        #[arg(long, value_name = "TIER")]
        tier: Option<String>,
        /// How long its events are kept, such as "24h", "400d" or "keep"
        #[arg(long, value_name = "SPAN")]
        retention: Option<String>,
        /// Make no key
        #[arg(long)]
        no_key: bool,
    },
    /// Show the tenants
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Refuse all keys of a tenant; what it has sent stays and is still delivered
    Disable {
        /// Id or name
        tenant: String,
    },
    /// Take the keys of a disabled tenant again
    Enable {
        /// Id or name
        tenant: String,
    },
    /// Erase everything that a tenant has sent so far, in all tables, for good
    ///
    /// What a log or a topic still holds of it is never stored. Disable the tenant first, or what it sends meanwhile is kept.
    /// The report says what was removed and what remains where, until when. Started again it does the rest, or it all again.
    Purge {
        /// Id or name; of a tenant that is no longer in the file, its id
        tenant: String,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of the `keys` subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = KEYS_EXAMPLES)]
pub struct KeysArgs {
    /// What to do
    #[command(subcommand)]
    pub action: KeysAction,
}

/// What to do with keys.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum KeysAction {
    /// Make a key and print it: the only time that it is shown
    Create {
        /// Id or name of the tenant
        tenant: String,
        /// Name of the key, for people
        #[arg(long, default_value = "")]
        name: String,
        /// What it may be used for: ingest, read or admin; may be given several times
        #[arg(long = "scope", value_name = "SCOPE", default_value = "ingest")]
        scopes: Vec<Scope>,
        /// Origin of pages that may use it; may be given several times. Without it: anywhere
        #[arg(long = "origin", value_name = "ORIGIN")]
        origins: Vec<Origin>,
        /// When it expires: a moment (2027-01-31T00:00:00Z) or a span from now ("90d")
        #[arg(long, value_name = "WHEN")]
        expires: Option<String>,
    },
    /// Make a key with the rights of another, which expires
    Rotate {
        /// Id or name of the tenant
        tenant: String,
        /// Name or first digits of the old key
        key: String,
        /// How long the old key is still taken, such as "24h"
        #[arg(long, value_name = "SPAN", default_value = "0s")]
        grace: String,
    },
    /// Refuse a key from now on
    Revoke {
        /// Id or name of the tenant
        tenant: String,
        /// Its name or first digits
        key: String,
    },
    /// Show the keys of a tenant: all but the keys themselves
    List {
        /// Id or name of the tenant
        tenant: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}
