"""Prompts and class names: lists, files, plans and tokenizers."""
