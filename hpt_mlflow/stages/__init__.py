"""The stages: each one a short story made of the other packages' parts."""
