//! The plugins in use at a moment, and which of them is given which event. Immutable: a change makes a new one, and a
//! request works with the one that it began with.
//!
//! # Order
//! An event first goes to the plugin that adds its type, then to those that name the type, then to those that take all
//! types (what they remove must stay removed); among equals by name. All plugins stand in one order, so that each is called
//! once for all events of a request. It holds for every type, but for plugins that enrich each other's types in a circle:
//! the one that would come first without the first rule begins there.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{descriptor::Descriptor, plugin::Plugin};
use crate::event::Types;

/// Stands for all types in a descriptor's `enriches`.
pub const ALL_TYPES: &str = "*";

/// The plugins in use.
#[derive(Default)]
pub struct Set {
    plugins: Vec<Arc<Plugin>>,
    types: Types,
    /// By type the plugins that are given its events, as places in `plugins`, ascending.
    routes: HashMap<Box<str>, Box<[usize]>>,
    /// Those that take all types: the route of every type that is not in `routes`.
    everything: Box<[usize]>,
}

impl Set {
    /// A set of `plugins`, between which there is no [`Set::conflict`]. `retired` names the types of plugins that are
    /// gone, each with its plugin.
    pub fn new(mut plugins: Vec<Arc<Plugin>>, retired: &BTreeMap<String, String>) -> Self {
        plugins.sort_by(|a, b| place(&a.descriptor).cmp(&place(&b.descriptor)));
        let plugins = owners_first(plugins);
        let added = plugins.iter().flat_map(|plugin| &plugin.descriptor.adds).map(|added| added.name.as_str());
        let types = Types::new(added, retired.iter().map(|(name, plugin)| (name.as_str(), plugin.as_str())));
        let of = |matches: &dyn Fn(&Descriptor) -> bool| -> Box<[usize]> {
            let found = plugins.iter().enumerate().filter(|(_, plugin)| matches(&plugin.descriptor));
            found.map(|(place, _)| place).collect()
        };
        let named = plugins.iter().flat_map(|plugin| {
            let adds = plugin.descriptor.adds.iter().map(|added| &added.name);
            adds.chain(plugin.descriptor.enriches.iter().filter(|name| *name != ALL_TYPES))
        });
        let routes = named.map(|name| (name.as_str().into(), of(&|descriptor| handles(descriptor, name)))).collect();
        let everything = of(&|descriptor| descriptor.enriches.iter().any(|name| name == ALL_TYPES));
        Self { plugins, types, routes, everything }
    }

    /// Whether no plugin is in use.
    pub fn is_empty(&self) -> bool {
        self.plugins.is_empty()
    }

    /// The plugins, in the order in which they are called.
    pub fn plugins(&self) -> &[Arc<Plugin>] {
        &self.plugins
    }

    /// The plugin of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.plugins.iter().find(|plugin| plugin.descriptor.name == name)
    }

    /// The types that events may have beside the built-in ones.
    pub fn types(&self) -> &Types {
        &self.types
    }

    /// The plugins that are given events of type `kind`, as places in [`Set::plugins`], in the order of their calls.
    pub fn route(&self, kind: &str) -> &[usize] {
        self.routes.get(kind).unwrap_or(&self.everything)
    }

    /// Why a plugin cannot be taken in beside the others; `file` names where it comes from, and `replaces` the plugin in
    /// whose place it would stand.
    pub fn conflict(&self, descriptor: &Descriptor, replaces: Option<&str>) -> Option<String> {
        let mut others = self.plugins.iter().filter(|other| Some(other.descriptor.name.as_str()) != replaces);
        others.find_map(|other| {
            let (name, file) = (&other.descriptor.name, &other.file);
            if *name == descriptor.name {
                return Some(format!(
                    "plugin {name:?} is in use already, from the file {file}: remove that file first"
                ));
            }
            let clash = descriptor.adds.iter().find(|added| other.descriptor.adds.iter().any(|a| a.name == added.name));
            clash.map(|added| {
                format!("the type {:?} is added by plugin {name:?} already, from the file {file}", added.name)
            })
        })
    }
}

fn handles(descriptor: &Descriptor, kind: &str) -> bool {
    descriptor.adds.iter().any(|added| added.name == kind)
        || descriptor.enriches.iter().any(|name| name == kind || name == ALL_TYPES)
}

/// Moves plugins behind those that add a type which they are given, and changes their order in nothing else. There are few,
/// and this is done when one comes or goes.
fn owners_first(mut plugins: Vec<Arc<Plugin>>) -> Vec<Arc<Plugin>> {
    let mut ordered = Vec::with_capacity(plugins.len());
    while !plugins.is_empty() {
        let waits = |plugin: &Arc<Plugin>| {
            let owners = plugins.iter().filter(|owner| !Arc::ptr_eq(owner, plugin));
            owners.flat_map(|owner| &owner.descriptor.adds).any(|added| handles(&plugin.descriptor, &added.name))
        };
        // In a circle all of them wait.
        let next = plugins.iter().position(|plugin| !waits(plugin)).unwrap_or(0);
        ordered.push(plugins.remove(next));
    }
    ordered
}

/// Sorts plugins: the further one reaches, the later it comes.
fn place(descriptor: &Descriptor) -> (u8, &str) {
    let reach = if descriptor.enriches.iter().any(|name| name == ALL_TYPES) {
        2
    } else {
        u8::from(!descriptor.enriches.is_empty())
    };
    (reach, &descriptor.name)
}
