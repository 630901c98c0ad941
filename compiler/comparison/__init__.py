"""``skerry compare``: two releases on the same frames, side by side. See docs/compare.md."""
