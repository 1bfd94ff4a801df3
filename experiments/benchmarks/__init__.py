"""Benchmarks: one script per question; each prints its measurements as a Markdown table."""
