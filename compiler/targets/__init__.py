"""Targets: what a device can run, as data, each fact with its source."""
