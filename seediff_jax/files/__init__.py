"""Files: local folders and buckets, strict JSON, text."""
