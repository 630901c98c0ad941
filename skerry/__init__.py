"""Contracts that every part of Skerry shares: formats, life cycles, errors, clock and disk. Imports no part."""

__version__ = "0.1.0"
