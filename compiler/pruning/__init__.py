"""Pruning from the parent's side: the ladder of ratios, the pictures to train with. See docs/pruning.md."""
