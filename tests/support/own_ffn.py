"""The source of a block of somebody's own."""

CUBED = """
import torch
from torch import nn


class Cubed(nn.Module):
    # An FFN with relu(x)^3 for its non-linearity.

    def __init__(self, config, width):
        super().__init__()
        self.width = width
        self.up = nn.Linear(config.d_model, width)
        self.down = nn.Linear(width, config.d_model)

    @property
    def nonlinearity_input(self):
        return self.up

    def forward(self, x):
        return self.down(torch.relu(self.up(x)) ** 3)
"""
