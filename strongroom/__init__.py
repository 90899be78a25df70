"""Strongroom: an open, self-hosted Cloud Backup and Recovery service that speaks the CBR v3 API."""

__version__ = "0.1.0"
