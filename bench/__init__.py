"""Benchmarks: one file a question; the last line of output is one JSON object."""
