"""ONNX graphs: looking at one, reading and running files, and the rewrites that every target shares."""
