"""One module per revision, named v0001_… in their order."""
