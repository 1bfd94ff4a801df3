"""Dataset folders: layout, formats, journal, checksums and verification.

Functions that cannot read or write a file raise an OSError that names it.
"""
