"""A model from one format of files into another, weight by weight the same."""
