//! What a check found.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use crate::plugins::descriptor::Descriptor;

/// A step of the check, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The file can be read.
    File,
    /// It is a library for this machine, whole, with a header that this engine understands.
    Open,
    /// What it says of itself.
    Describe,
    /// Its JSON Schemas.
    Schemas,
    /// An instance with its configuration.
    Create,
    /// Whether it says that it can work.
    Health,
    /// Its own examples, and examples broken in a few ways.
    Trial,
    /// The same many times over, while the memory in use is watched.
    Leaks,
    /// The instance's end.
    Destroy,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::File => "file",
            Self::Open => "open",
            Self::Describe => "describe",
            Self::Schemas => "schemas",
            Self::Create => "create",
            Self::Health => "health",
            Self::Trial => "trial run",
            Self::Leaks => "leaks",
            Self::Destroy => "destroy",
        })
    }
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should.
    Passed,
    /// With something that its author should look at.
    Warning,
    /// The plugin is not taken into use.
    Failed,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// Which.
    pub step: Step,
    /// How it ended.
    pub outcome: Outcome,
    /// In words; may be empty for a step that passed.
    pub detail: String,
}

/// What a check found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The file, as it was named.
    pub file: String,
    /// Whether the plugin can be taken into use.
    pub ok: bool,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: Option<String>,
    /// Minor version of the contract that it was compiled with.
    pub abi_minor: Option<u32>,
    /// What it says of itself, once that was found good.
    pub descriptor: Option<Descriptor>,
    /// The steps that were taken.
    pub steps: Vec<StepReport>,
}

impl Report {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            file: path.display().to_string(),
            ok: false,
            sha256: None,
            abi_minor: None,
            descriptor: None,
            steps: Vec::new(),
        }
    }

    /// Why the plugin cannot be used; none if it can.
    pub fn problem(&self) -> Option<String> {
        let failed = self.steps.iter().filter(|step| step.outcome == Outcome::Failed);
        let words: Vec<String> = failed.map(|step| format!("{}: {}", step.step, step.detail)).collect();
        if self.ok { None } else { Some(words.join("; ")) }
    }

    /// What its author should look at, although it can be used.
    pub fn warnings(&self) -> impl Iterator<Item = &StepReport> {
        self.steps.iter().filter(|step| step.outcome == Outcome::Warning)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.file)?;
        for step in &self.steps {
            let outcome = match step.outcome {
                Outcome::Passed => "ok",
                Outcome::Warning => "warning",
                Outcome::Failed => "FAILED",
            };
            writeln!(f, "{}", format!("  {:<10} {outcome:<8} {}", step.step, step.detail).trim_end())?;
        }
        f.write_str(if self.ok { "the plugin can be used" } else { "the plugin cannot be used" })
    }
}
