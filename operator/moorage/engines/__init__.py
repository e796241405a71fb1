"""One file per engine: its arguments, probes, ports, metric names and log patterns."""
