"""From attention maps to label maps; usable without a model."""
