"""From rows to a model that `batchnlp run` takes as it stands. See README.md in this folder."""
