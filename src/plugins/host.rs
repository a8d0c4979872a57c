//! What the engine does for a plugin: log lines, counters, gauges, the time.
