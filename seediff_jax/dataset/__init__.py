"""Dataset folders: layout, formats, journal, checksums and verification."""
