"""Running a model: backends, pre- and post-processing, proof. Needs the extra ``runtime``: numpy and onnxruntime."""
