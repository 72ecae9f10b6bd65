"""The atrous pyramid that DENet, CANet and PGNet share."""

from __future__ import annotations

from torch import Tensor, nn

from fastfss.encoders.pointwise import pointwise

DILATIONS = (6, 12, 18)


class RegASPP(nn.Module):
    """Atrous spatial pyramid pooling without batch norm, its width the same before and after.

        x_0 = conv1x1(x), x_i = conv3x3 of dilation 6, 12, 18 (x), x_4 = conv1x1(mean of x)
        y = conv1x1 of all five, one below the other, x_4 spread over the map

    a ReLU and a dropout after each. x_4 is one vector an image, so what `project` makes of it is
    too: it is added as a bias, neither spread nor concatenated. The other four are projected each
    for itself and added up, which spares their concatenation.

    Source: lizhaoliu-Lec/DENet (ACM MM 2020), after Chen et al., 2017 (arXiv 1706.05587).

    Args:
        channels: of the input, of each branch and of the output.
        dropout: probability, of whole maps behind the branches and of elements behind `project`.
    """

    def __init__(self, channels: int = 256, dropout: float = 0.5) -> None:
        super().__init__()

        def branch(convolution: nn.Conv2d, *before: nn.Module) -> nn.Sequential:
            return nn.Sequential(*before, convolution, nn.ReLU(inplace=True), nn.Dropout2d(dropout))

        # The indices in these sequences are the published key names.
        self.convs = nn.ModuleList(
            [
                branch(nn.Conv2d(channels, channels, 1)),
                *(
                    branch(nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate))
                    for rate in DILATIONS
                ),
                branch(nn.Conv2d(channels, channels, 1), nn.AdaptiveAvgPool2d(1)),
            ]
        )
        self.project = nn.Sequential(
            nn.Conv2d(len(self.convs) * channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )

    def forward(
        self,
        x: Tensor,  # (B, C, h, w)
    ) -> Tensor:  # (B, C, h, w)
        """Apply the pyramid."""
        convolution, *after = self.project
        assert isinstance(convolution, nn.Conv2d)
        shares = convolution.weight.split(x.shape[1], dim=1)
        out = pointwise(self.convs[-1](x), shares[-1], convolution.bias)  # (B, C, 1, 1)
        for branch, share in zip(self.convs[:-1], shares[:-1], strict=True):
            out = pointwise(branch(x), share) + out
        for part in after:
            out = part(out)
        return out
