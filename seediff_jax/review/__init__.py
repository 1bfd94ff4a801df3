"""Judges a finished dataset: statistics of its samples, a filtered copy, a report for browsers."""
