use crate::results::Document;
pub fn markdown(_document: &Document) -> String {
    String::new()
}
