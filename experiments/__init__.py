"""Studies around seediff_jax: training, quality tables, benchmarks. Not part of the wheel."""
