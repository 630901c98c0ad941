"""The build machine's part: a torch model becomes a verified, signed bundle."""
