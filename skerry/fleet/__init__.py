"""The fleet's API from an operator's side: its documents, a typed client, and the `skerry fleet` command."""
