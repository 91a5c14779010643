"""The commands of `flopwatch`: one module for each group of them, `app` puts them together."""
