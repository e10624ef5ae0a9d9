"""The five augmentations of the paper, their subsets and strengths, and the views they make."""
