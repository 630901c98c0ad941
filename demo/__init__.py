"""The story that `make demo` tells. Not in the wheel."""
