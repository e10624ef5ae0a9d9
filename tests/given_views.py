"""Views that a test gives to a method, in place of those that a trainer makes of images."""

import torch


class GivenViews:
    """Views of the images of this process, and one of its share of a shuffled batch with the order of the whole."""

    def __init__(self, *views, order=None):
        self.views = views
        self.order = order if order is not None else torch.arange(len(views[0]))

    def __getitem__(self, number):
        return self.views[number]

    def shuffled(self, number):
        return self.views[number], self.order
