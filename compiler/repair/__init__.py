"""Mending a hop that is out of tolerance."""
