"""Where frames come from: cameras, files, folders, and pictures that are pushed."""
