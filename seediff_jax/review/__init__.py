"""Reviews a complete dataset: statistics of its samples, a filtered copy, a report."""
