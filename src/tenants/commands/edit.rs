//! Changes in the text of the tenants' file, which leave everything else in it, comments included, as it stands.

use jiff::Timestamp;
use thiserror::Error;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TomlError, value};
use uuid::Uuid;

use crate::{
    ids::TenantId,
    tenants::key::{Key, KeySum, Origin, Scope},
};

/// What a new file begins with.
const HEAD: &str = "# Tenants and their keys. config/tenants.toml of the engine explains what may stand here; changes are in \
                    use within about a second.\n";

/// Why a file cannot be changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EditError {
    /// It is no TOML.
    #[error("the file is not TOML")]
    Syntax(#[from] TomlError),
    /// Its tenants or keys are not written as sections.
    #[error("{0} is not written as sections: write one {1} for each")]
    Inline(&'static str, &'static str),
    /// The tenant or the key is not there: the file has been changed meanwhile.
    #[error("it is not in the file")]
    Missing,
}

/// A new tenant.
pub(super) struct NewTenant<'a> {
    pub id: TenantId,
    pub name: &'a str,
    pub tier: Option<&'a str>,
    pub retention: Option<&'a str>,
}

/// The text of a tenants' file.
pub(super) struct File {
    document: DocumentMut,
}

impl File {
    /// Of `text`; of nothing at all: a new file.
    pub fn parse(text: &str) -> Result<Self, EditError> {
        let text = if text.is_empty() { HEAD } else { text };
        Ok(Self { document: text.parse()? })
    }

    pub fn text(&self) -> String {
        self.document.to_string()
    }

    pub fn add_tenant(&mut self, tenant: &NewTenant<'_>) -> Result<(), EditError> {
        let mut table = Table::new();
        table.insert("id", value(tenant.id.to_string()));
        table.insert("name", value(tenant.name));
        for (name, text) in [("tier", tenant.tier), ("retention", tenant.retention)] {
            if let Some(text) = text {
                table.insert(name, value(text));
            }
        }
        let before = self.take_trailing();
        table.decor_mut().set_prefix(format!("{before}\n"));
        self.tenants()?.push(table);
        Ok(())
    }

    /// The comments at the end of the file, which belong to what stands before them and stay there when something is added.
    fn take_trailing(&mut self) -> String {
        let trailing = self.document.trailing().as_str().unwrap_or_default().to_owned();
        self.document.set_trailing("");
        trailing
    }

    pub fn set_disabled(&mut self, tenant: TenantId, disabled: bool) -> Result<(), EditError> {
        let table = self.tenant(tenant)?;
        if disabled {
            table.insert("disabled", value(true));
        } else {
            table.remove("disabled");
        }
        Ok(())
    }

    pub fn add_key(&mut self, tenant: TenantId, key: &Key) -> Result<(), EditError> {
        let mut table = Table::new();
        if !key.name.is_empty() {
            table.insert("name", value(&*key.name));
        }
        table.insert("sha256", value(key.sum.to_string()));
        let scopes = key.scopes.iter().map(Scope::as_str);
        table.insert("scopes", value(scopes.collect::<toml_edit::Array>()));
        if !key.origins.is_empty() {
            let origins = key.origins.iter().map(Origin::as_str);
            table.insert("origins", value(origins.collect::<toml_edit::Array>()));
        }
        if let Some(expires) = key.expires {
            table.insert("expires", moment(expires)?);
        }
        let id = |table: &Table| table.get("id").and_then(Item::as_str).and_then(|text| Uuid::try_parse(text).ok());
        let is_last = self.tenants()?.iter().last().and_then(id) == Some(tenant.0);
        let before = if is_last { self.take_trailing() } else { String::new() };
        table.decor_mut().set_prefix(format!("{before}\n"));
        sections(self.tenant(tenant)?.entry("keys").or_insert(empty()), "keys", "[[tenants.keys]]")?.push(table);
        Ok(())
    }

    pub fn set_expires(&mut self, tenant: TenantId, key: &KeySum, at: Timestamp) -> Result<(), EditError> {
        self.key(tenant, key)?.insert("expires", moment(at)?);
        Ok(())
    }

    pub fn set_revoked(&mut self, tenant: TenantId, key: &KeySum, at: Timestamp) -> Result<(), EditError> {
        self.key(tenant, key)?.insert("revoked", moment(at)?);
        Ok(())
    }

    fn tenants(&mut self) -> Result<&mut ArrayOfTables, EditError> {
        sections(self.document.entry("tenants").or_insert(empty()), "tenants", "[[tenants]]")
    }

    fn tenant(&mut self, id: TenantId) -> Result<&mut Table, EditError> {
        let is = |table: &Table| {
            table.get("id").and_then(Item::as_str).and_then(|text| Uuid::try_parse(text).ok()) == Some(id.0)
        };
        self.tenants()?.iter_mut().find(|table| is(table)).ok_or(EditError::Missing)
    }

    fn key(&mut self, tenant: TenantId, sum: &KeySum) -> Result<&mut Table, EditError> {
        let is = |table: &Table| table.get("sha256").and_then(Item::as_str).and_then(KeySum::from_hex) == Some(*sum);
        let keys = self.tenant(tenant)?.get_mut("keys").ok_or(EditError::Missing)?;
        sections(keys, "keys", "[[tenants.keys]]")?.iter_mut().find(|table| is(table)).ok_or(EditError::Missing)
    }
}

fn empty() -> Item {
    Item::ArrayOfTables(ArrayOfTables::new())
}

fn sections<'a>(
    item: &'a mut Item,
    name: &'static str,
    written: &'static str,
) -> Result<&'a mut ArrayOfTables, EditError> {
    // An empty list says the same as none.
    if item.as_array().is_some_and(toml_edit::Array::is_empty) {
        *item = empty();
    }
    item.as_array_of_tables_mut().ok_or(EditError::Inline(name, written))
}

/// In whole seconds: what people read and write.
fn moment(at: Timestamp) -> Result<Item, EditError> {
    let text = Timestamp::from_second(at.as_second()).unwrap_or(at).to_string();
    text.parse::<toml_edit::Datetime>().map(value).map_err(|_| EditError::Missing)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn key(name: &str, origins: &[&str]) -> Key {
        Key {
            sum: KeySum::of(name),
            name: name.into(),
            scopes: [Scope::Ingest].into_iter().collect(),
            origins: origins.iter().map(|origin| origin.parse().unwrap()).collect(),
            expires: None,
            revoked: None,
        }
    }

    #[test]
    fn what_is_not_changed_stays_as_it_stands() {
        let id = |number| TenantId(Uuid::from_u128(number));
        let mut file = File::parse("").unwrap();
        file.add_tenant(&NewTenant { id: id(1), name: "one", tier: Some("paid"), retention: None }).unwrap();
        file.add_key(id(1), &key("web", &["https://a.example"])).unwrap();
        let text = file.text().replace("name = \"one\"", "name = \"one\" # the first");

        let mut file = File::parse(&(text + "# of the key\n")).unwrap();
        file.add_tenant(&NewTenant { id: id(2), name: "two", tier: None, retention: Some("keep") }).unwrap();
        file.add_key(id(1), &key("server", &[])).unwrap();
        file.set_disabled(id(1), true).unwrap();
        let at: Timestamp = "2026-01-02T03:04:05.678Z".parse().unwrap();
        file.set_revoked(id(1), &KeySum::of("web"), at).unwrap();
        file.set_expires(id(1), &KeySum::of("server"), at).unwrap();
        let (web, server) = (KeySum::of("web"), KeySum::of("server"));
        assert_eq!(
            file.text(),
            format!(
                "{HEAD}\n[[tenants]]\nid = \"{}\"\nname = \"one\" # the first\ntier = \"paid\"\ndisabled = true\n\n\
                 [[tenants.keys]]\nname = \"web\"\nsha256 = \"{web}\"\nscopes = [\"ingest\"]\n\
                 origins = [\"https://a.example\"]\nrevoked = 2026-01-02T03:04:05Z\n\n\
                 [[tenants.keys]]\nname = \"server\"\nsha256 = \"{server}\"\nscopes = [\"ingest\"]\n\
                 expires = 2026-01-02T03:04:05Z\n# of the key\n\n[[tenants]]\nid = \"{}\"\nname = \"two\"\nretention = \"keep\"\n",
                id(1),
                id(2)
            )
        );
        file.set_disabled(id(1), false).unwrap();
        assert!(!file.text().contains("disabled"));
        assert!(matches!(file.set_disabled(id(3), true), Err(EditError::Missing)));
        assert!(matches!(file.set_revoked(id(2), &web, at), Err(EditError::Missing)));
    }

    #[test]
    fn comments_at_the_end_stay_with_what_they_are_of() {
        let id = TenantId(Uuid::from_u128(1));
        let text = format!("[[tenants]]\nid = \"{id}\"\n# disabled = true\n");
        let mut file = File::parse(&text).unwrap();
        file.add_key(id, &key("web", &[])).unwrap();
        assert!(file.text().starts_with(&format!("{text}\n[[tenants.keys]]\nname = \"web\"\n")), "{}", file.text());
    }

    #[test]
    fn a_file_that_is_written_in_another_way_is_left_alone() {
        let mut inline = File::parse("tenants = [{ id = \"00000000-0000-0000-0000-000000000001\" }]").unwrap();
        assert!(matches!(inline.set_disabled(TenantId(Uuid::from_u128(1)), true), Err(EditError::Inline(..))));
        assert!(matches!(File::parse("tenants = ["), Err(EditError::Syntax(_))));
    }
}
