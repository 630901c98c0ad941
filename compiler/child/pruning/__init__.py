"""Taking channels out of a net: which belong together, which go, and the graph that is left.

`labels` says what a channel is, `rules` follows channels through every operator of an exported graph, `units` chooses
among those that may go, `rewrite` takes them out, and `record` is what remains of it on disk.
"""
