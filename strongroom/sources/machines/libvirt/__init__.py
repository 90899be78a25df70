"""Machines under libvirt: domains of a hypervisor on this host, addressed as `libvirt:URI#DOMAIN`."""
