"""The demo, a page for the browser: prompts, live mask settings, and the stages of masks."""
