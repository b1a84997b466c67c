"""Model files -> named tensors: finding, fetching and reading the files of a model."""
