"""Frames and labelled samples: which calibrate, which search, which report."""
