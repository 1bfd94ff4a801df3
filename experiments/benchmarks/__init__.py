"""Benchmarks: one script a question, each prints a Markdown table of what one run measured."""
