"""A page for browsers: prompts, live mask settings, and the stages of masks."""
