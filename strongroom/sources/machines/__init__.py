"""Machines: several disks of one machine in one consistent point (OS::Nova::Server)."""
