"""What a compilation found: the statements, what became of each layer, and the report. See docs/evidence.md."""
