//! What a campaign found, as people read it.

use std::{any::Any, collections::BTreeMap, fmt, time::Duration};

use crate::support::{
    kill_points::Stage,
    load::Audit,
    rig::{Rig, Round},
};

const STAGES: [(Stage, &str); 5] = [
    (Stage::Append, "append"),
    (Stage::Flush, "flush"),
    (Stage::Produce, "produce"),
    (Stage::Insert, "insert"),
    (Stage::Commit, "commit"),
];

/// What came of one fault.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Those with requests in flight at the fault.
    rounds: usize,
    /// Those without, which prove nothing.
    idle: usize,
    acknowledged: usize,
    stored: usize,
    lost: usize,
    twice: usize,
    recovery: Duration,
    trouble: Vec<String>,
    /// How many rounds found a call of this stage under way.
    stages: BTreeMap<Stage, usize>,
}

impl Row {
    /// Of a rig, when its rounds are played; its files stay when something is wrong.
    pub fn of(mut rig: Rig, rounds: impl IntoIterator<Item = Round>) -> Self {
        let audit = rig.check();
        let mut row = Self::new(&audit, rounds);
        if !audit.holds() {
            row.trouble.push(format!("files: {}", rig.keep().display()));
        }
        row
    }

    pub fn new(audit: &Audit, rounds: impl IntoIterator<Item = Round>) -> Self {
        let Audit { acknowledged, stored, lost, twice, faults } = audit.clone();
        let mut row = Self { acknowledged, stored, lost, twice, trouble: faults, ..Self::default() };
        for Round { in_flight, recovery, stages } in rounds {
            if !in_flight {
                row.idle += 1;
                continue;
            }
            row.rounds += 1;
            row.recovery = row.recovery.max(recovery);
            for (stage, _) in STAGES {
                *row.stages.entry(stage).or_default() += usize::from(stages.contains(&stage));
            }
        }
        row
    }

    /// Of a fault whose rounds did not come to their end.
    pub fn failed(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
        // The log of the engine follows in some, which is printed already.
        let text: Vec<_> = text.lines().take(3).collect();
        Self { trouble: vec![format!("panicked: {}", text.join(" / "))], ..Self::default() }
    }

    pub fn summary(&self) -> String {
        let Self { rounds, acknowledged, lost, twice, .. } = self;
        let trouble = if self.trouble.is_empty() { String::new() } else { format!("; {}", self.trouble.join("; ")) };
        format!("{rounds} rounds, {acknowledged} acknowledged, {lost} lost, {twice} twice{trouble}")
    }

    fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.idle += other.idle;
        self.acknowledged += other.acknowledged;
        self.stored += other.stored;
        self.lost += other.lost;
        self.twice += other.twice;
        self.recovery = self.recovery.max(other.recovery);
        self.trouble.extend(other.trouble);
        for (stage, rounds) in other.stages {
            *self.stages.entry(stage).or_default() += rounds;
        }
    }
}

/// Every fault of a campaign.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<(&'static str, Row)>,
}

impl Table {
    pub fn add(&mut self, fault: &'static str, row: Row) {
        match self.rows.iter_mut().find(|(name, _)| *name == fault) {
            Some((_, sum)) => sum.add(row),
            None => self.rows.push((fault, row)),
        }
    }

    fn total(&self) -> Row {
        let mut total = Row::default();
        for (_, row) in &self.rows {
            total.add(row.clone());
        }
        total
    }

    fn hits(&self, stage: Stage) -> usize {
        self.rows.iter().map(|(_, row)| row.stages.get(&stage).copied().unwrap_or(0)).sum()
    }

    /// Nothing lost, nothing twice, every fault and every stage met.
    pub fn holds(&self) -> bool {
        let fine = |row: &Row| {
            row.rounds > 0 && row.lost + row.twice == 0 && row.acknowledged == row.stored && row.trouble.is_empty()
        };
        self.rows.iter().all(|(_, row)| fine(row)) && STAGES.iter().all(|(stage, _)| self.hits(*stage) > 0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| fault | rounds | acknowledged | stored | lost | duplicated | longest recovery |")?;
        writeln!(f, "|---|--:|--:|--:|--:|--:|--:|")?;
        let total = self.total();
        for (name, row) in self.rows.iter().map(|(name, row)| (*name, row)).chain([("all", &total)]) {
            let Row { rounds, acknowledged, stored, lost, twice, recovery, .. } = row;
            let recovery = recovery.as_secs_f64();
            writeln!(f, "| {name} | {rounds} | {acknowledged} | {stored} | {lost} | {twice} | {recovery:.1} s |")?;
        }
        let kills = |(name, row): &(&str, Row)| if name.starts_with("kill -9") { row.rounds } else { 0 };
        writeln!(f, "\nkill -9 of the engine: {} rounds", self.rows.iter().map(kills).sum::<usize>())?;
        writeln!(f, "\n| stage under way at the fault | rounds |\n|---|--:|")?;
        for (stage, name) in STAGES {
            writeln!(f, "| {name} | {} |", self.hits(stage))?;
        }
        if total.idle > 0 {
            writeln!(f, "\nNot counted: {} rounds without a request in flight at the fault.", total.idle)?;
        }
        for (name, row) in &self.rows {
            for trouble in &row.trouble {
                writeln!(f, "\nFAILED: {name}: {trouble}")?;
            }
        }
        Ok(())
    }
}
