//! The harness that the tests share.

pub mod proxy;
pub mod tansu;
