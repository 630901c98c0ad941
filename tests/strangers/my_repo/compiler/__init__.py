"""A stranger's package, named as ours or as our folders are."""
