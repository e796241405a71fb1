"""Decisions: what was observed in, a plan out. Pure: time is an argument, nothing is read or written."""
