"""What is compiled: the recipe, what a model file says of itself, and what a release was made from."""
