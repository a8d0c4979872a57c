//! A plugin's instance in this process: calls across the contract, and what comes back held against it.
