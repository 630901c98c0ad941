"""What runs in the child process, beside the user's code: relative imports only, so that it may load under an alias."""
