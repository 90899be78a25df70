"""What runs on a protected host: it dials out, reads and writes what the host's own file allows, and decides nothing.

It uses the drivers of `sources` for files and the chunker of `engine`; it knows no store, no database and no API.
"""
