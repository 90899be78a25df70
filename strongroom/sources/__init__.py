"""What is protected: drivers that open consistent points of folders and disks, and write restores back."""
