"""The agent as a service of the system: its unit, its word to systemd, its log lines."""
