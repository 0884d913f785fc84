"""Small models to learn and test with: plain `nn.Module`s with a forward of their own, as people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelab.errors import PipelabError


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        query, key, value = heads.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """A transformer block: attention and a two-layer perceptron, each normalised first and added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A small GPT. Input: token ids, shape (batch, length); output: logits, shape (batch, length, vocab)."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        vocab: int,
        context: int,
        tied: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise PipelabError(f"width is {width}; it must be a multiple of heads, which is {heads}.")
        self.context = context
        self.token_embedding = nn.Embedding(vocab, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.token_embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Residual(nn.Module):
    """Two convolutions whose result is added to the input: a skip connection inside one module."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))), inplace=True)


class ResNet(nn.Module):
    """A small residual network. Input: images, shape (batch, 3, height, width); output: shape (batch, classes)."""

    def __init__(self, blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(images))
        classes: Tensor = self.head(x.mean(dim=(2, 3)))
        return classes


class UNet(nn.Module):
    """A small U-Net: what each level finds on the way down is read again on the way up, across stages.

    Input and output: images, shape (batch, 1, height, width), both sides multiples of 2 ** depth.
    """

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            nn.Conv2d(1 if level == 0 else widths[level - 1], widths[level], 3, padding=1)
            for level in range(depth)
        )
        self.bottom = nn.Conv2d(widths[depth - 1], widths[depth], 3, padding=1)
        self.up = nn.ModuleList(
            nn.Conv2d(widths[level + 1] + widths[level], widths[level], 3, padding=1)
            for level in reversed(range(depth))
        )
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for conv in self.down:
            x = F.relu(conv(x))
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = F.relu(self.bottom(x))
        for conv in self.up:
            x = torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], dim=1)
            x = F.relu(conv(x))
        image: Tensor = self.head(x)
        return image


def gpt(
    layers: int = 8,
    width: int = 256,
    heads: int = 4,
    vocab: int = 2048,
    context: int = 128,
    tied: bool = False,
    dropout: float = 0.0,
) -> GPT:
    """A small GPT; `tied` shares the weights of embedding and head.

    Example:
        >>> import torch, pipelab as pp
        >>> pp.zoo.gpt(layers=2, width=16, heads=2, vocab=32, context=8)(torch.zeros(1, 8, dtype=torch.long)).shape
        torch.Size([1, 8, 32])
    """
    return GPT(layers, width, heads, vocab, context, tied, dropout)


def resnet(blocks: int = 4, channels: int = 16, classes: int = 10) -> ResNet:
    """A small residual network with BatchNorm and skips inside its blocks.

    Example:
        >>> import torch, pipelab as pp
        >>> pp.zoo.resnet(blocks=2, channels=4)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    return ResNet(blocks, channels, classes)


def unet(depth: int = 2, channels: int = 8) -> UNet:
    """A small U-Net, whose skips cross the stages.

    Example:
        >>> import torch, pipelab as pp
        >>> pp.zoo.unet(depth=2, channels=4)(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
    """
    return UNet(depth, channels)


def mlp(layers: int = 4, width: int = 64) -> nn.Sequential:
    """A chain of linear layers with GELU between them: a plain `nn.Sequential`.

    Example:
        >>> import torch, pipelab as pp
        >>> pp.zoo.mlp(layers=2, width=8)(torch.zeros(3, 8)).shape
        torch.Size([3, 8])
    """
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(width, width), nn.GELU()]
    return nn.Sequential(*modules[:-1])
