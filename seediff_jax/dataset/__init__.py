"""Dataset folders: layout, formats, journal, checksums and verification.

What reads or writes files here raises an OSError that names the file which cannot be.
"""
