"""Pre- and post-processing as part of a model's graph: uint8 frames in, answers out. See docs/in-graph.md."""
