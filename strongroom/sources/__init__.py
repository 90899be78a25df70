"""What is protected: drivers that read resources and write them back. Knows only `base`."""
