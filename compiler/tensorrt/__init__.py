"""TensorRT: what it must be given, what it was built from, and what it really built."""
