"""The proxies that `benchmarks.gateway` measures, and what it measures them with."""
