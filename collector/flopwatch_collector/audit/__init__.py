"""Whether all that agents handed over is here: what spools say of themselves, against what is stored."""
