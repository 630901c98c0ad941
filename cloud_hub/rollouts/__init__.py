"""Rollouts: a release reaches a fleet in waves, and each wave opens only on what devices measured."""
