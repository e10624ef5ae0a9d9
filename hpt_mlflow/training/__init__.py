"""The training loop, what it needs to know, and the state that it can go on from."""
