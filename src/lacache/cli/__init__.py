"""The command `lacache`."""
