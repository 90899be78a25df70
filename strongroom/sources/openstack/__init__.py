"""Volumes of an OpenStack: what Cinder gives, read and written through its own snapshots and attachments."""
