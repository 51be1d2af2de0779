"""The simple feature pyramid of plain vision transformers: ViTDet (Li et al. 2022, section 3)."""

from torch import Tensor, nn


class SimplePyramid(nn.Module):
    """Features at strides 8, 16 and 32 from the last features of a transformer, at stride 16.

    ``channels`` are the channel counts of the three outputs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = [channels // 2, channels, channels]
        self.finer = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.coarser = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Return the features of ``[B, C, H, W]`` at twice, the same and half its resolution."""
        return [self.finer(features), features, self.coarser(features)]
