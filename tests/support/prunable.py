"""Small nets, each with one thing that is hard to prune, written as people write it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = conv(width, width, 3), conv(width, width, 3)

    def forward(self, x):
        return x + self.two(self.one(x))


class C2f(nn.Module):
    """YOLOv8's: cut in two, each bottleneck's output joins the concat."""

    def __init__(self, inputs: int, outputs: int, count: int = 2) -> None:
        super().__init__()
        self.width = outputs // 2
        self.first, self.last = conv(inputs, outputs), conv((2 + count) * self.width, outputs)
        self.steps = nn.ModuleList(Bottleneck(self.width) for _ in range(count))

    def forward(self, x):
        pieces = list(self.first(x).split((self.width, self.width), 1))
        pieces.extend(step(pieces[-1]) for step in self.steps)
        return self.last(torch.cat(pieces, 1))


class CrossStage(nn.Module):
    """CSP with chunk."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.open, self.step, self.close = conv(width, width), Bottleneck(width // 2), conv(width, width)

    def forward(self, x):
        around, through = self.open(x).chunk(2, dim=1)
        return self.close(torch.cat((self.step(through), around), 1))


class Shuffle(nn.Module):
    """ShuffleNet v2: half of the channels pass, then all change places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(conv(half, half), conv(half, half, 3, groups=half), conv(half, half))

    def forward(self, x):
        batch, channels, height, width = x.shape
        kept, used = x.chunk(2, 1)
        joined = torch.cat((kept, self.branch(used)), 1)
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)


class Grouped(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width, 3, groups=4), conv(width, width))

    def forward(self, x):
        return x + self.body(x)


class Squeeze(nn.Module):
    """Squeeze and excitation around a depthwise convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = conv(width, 2 * width), conv(2 * width, width)
        self.deep = conv(2 * width, 2 * width, 3, groups=2 * width)
        self.down, self.up = nn.Conv2d(2 * width, width // 2, 1), nn.Conv2d(width // 2, 2 * width, 1)

    def forward(self, x):
        y = self.deep(self.wide(x))
        gate = torch.sigmoid(self.up(functional.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return x + self.narrow(y * gate)


class ThreeWays(nn.Module):
    """A concat of three, one of them seen at a coarser scale and grown again by a transposed convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two, self.down = conv(width, width), conv(width, 2 * width, 3), conv(width, width, 3, 2)
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.close = conv(4 * width, width)

    def forward(self, x):
        return self.close(torch.cat((self.one(x), self.up(self.down(x)), self.two(x)), 1))


class Focus(nn.Module):
    """Space to depth by slices, as in YOLOv5 and Swin's patch merging."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.close = conv(4 * width, width)

    def forward(self, x):
        places = x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]
        return functional.interpolate(self.close(torch.cat(places, 1)), scale_factor=2.0)


class Standardized(nn.Module):
    """Weights brought to mean 0 and deviation 1 in each run, with a gain (NFNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(width, width, 3, 3)), nn.Parameter(torch.rand(width, 1, 1, 1))

    def forward(self, x):
        flat = self.weight.reshape(1, len(self.weight), -1)
        even = functional.batch_norm(flat, None, None, self.gain.view(-1), training=True, eps=1e-6)
        return x + functional.conv2d(x, even.reshape_as(self.weight), padding=1)


class GatedUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.norm = nn.GroupNorm(4, 2 * width)

    def forward(self, x):
        return x + self.narrow(self.norm(functional.glu(self.wide(x), 1)))


class Attention(nn.Module):
    """Fused qkv and layer scale, as in a ViT."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head = heads, 16
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * heads * 16)
        self.out, self.scale = nn.Linear(heads * 16, width), nn.Parameter(torch.rand(width))

    def bias(self):
        return 0.0

    def attend(self, x):
        batch, count, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, count, 3, self.heads, self.head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.head**-0.5) @ k.transpose(-2, -1) + self.bias()
        return self.scale * self.out((weights.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, -1))

    def forward(self, x):
        batch, width, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        return (tokens + self.attend(tokens)).transpose(1, 2).reshape(batch, width, rows, columns)


class FusedAttention(Attention):
    """By torch's own operator, which takes its scale from the width that it sees."""

    def attend(self, x):
        batch, count, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, count, 3, self.heads, self.head).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.scale * self.out(mixed.transpose(1, 2).flatten(2))


class WindowAttention(Attention):
    """Swin's: in windows of 2x2, with a table of biases by relative position."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.table = nn.Parameter(torch.randn(9, self.heads))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None]) + 1
        self.register_buffer("index", apart[0] * 3 + apart[1])

    def bias(self):
        return self.table[self.index.view(-1)].view(4, 4, self.heads).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x):
        batch, width, rows, columns = x.shape
        windows = x.view(batch, width, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, width)
        mixed = self.attend(windows).view(batch, rows // 2, columns // 2, 2, 2, width)
        return x + mixed.permute(0, 5, 1, 3, 2, 4).reshape(batch, width, rows, columns)


class BlockedAttention(Attention):
    """In blocks, by torch's own operator on five dimensions (NesT, Twins)."""

    def attend(self, x):
        batch, count, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 2, count // 2, 3, self.heads, self.head).permute(3, 0, 4, 1, 2, 5)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.scale * self.out(mixed.permute(0, 2, 3, 1, 4).reshape(batch, count, -1))


class Rotary(Attention):
    """Neighbouring channels turned together by position, in interleaved pairs."""

    def attend(self, x):
        batch, count, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, count, 3, self.heads, self.head).permute(2, 0, 3, 1, 4)
        angle = torch.arange(count, dtype=x.dtype)[:, None].sin()
        turned = [t + angle * torch.stack((-t[..., 1::2], t[..., ::2]), -1).reshape(t.shape) for t in (q, k)]
        mixed = functional.scaled_dot_product_attention(*turned, v)
        return self.scale * self.out(mixed.transpose(1, 2).reshape(batch, count, -1))


CONVOLUTIONAL = {
    "c2f": lambda width: C2f(width, width),
    "csp": CrossStage,
    "shuffle": Shuffle,
    "grouped": Grouped,
    "squeeze": Squeeze,
    "concat-of-3": ThreeWays,
    "focus": Focus,
}
NORMALIZED = {
    "weight-standardized": Standardized,
    "gated-group-norm": GatedUnit,
    "attention": Attention,
    "fused-attention": FusedAttention,
    "window-attention": WindowAttention,
    "blocked-attention": BlockedAttention,
    "rotary": Rotary,
}
BLOCKS = {**CONVOLUTIONAL, **NORMALIZED}


class Net(nn.Module):
    """A stem, blocks of one width, and a classifier of six."""

    def __init__(self, *names: str, width: int = 32) -> None:
        super().__init__()
        self.stem = conv(3, width, 3, 2)
        self.blocks = nn.Sequential(*(BLOCKS[name](width) for name in names))
        self.mix, self.head = conv(width, 2 * width), nn.Linear(2 * width, 6)

    def forward(self, image):
        return self.head(self.mix(self.blocks(self.stem(image))).mean((2, 3)))


class Detector(nn.Module):
    """Two scales, boxes as distributions over bins, scores: as YOLOv8 decodes them."""

    def __init__(self, width: int = 32, bins: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.stem, self.fine = conv(3, width, 3, 2), C2f(width, width)
        self.down, self.coarse = conv(width, 2 * width, 3, 2), C2f(2 * width, 2 * width)
        self.neck = C2f(3 * width, width)
        self.heads = nn.ModuleList(nn.Conv2d(w, 4 * bins + classes, 1) for w in (width, 2 * width))
        self.register_buffer("centres", torch.arange(bins, dtype=torch.float32))

    def forward(self, image):
        fine = self.fine(self.stem(image))
        coarse = self.coarse(self.down(fine))
        fine = self.neck(torch.cat((functional.interpolate(coarse, scale_factor=2.0), fine), 1))
        flat = [head(x).flatten(2) for head, x in zip(self.heads, (fine, coarse), strict=True)]
        boxes, scores = torch.cat(flat, 2).split((4 * self.bins, self.classes), 1)
        distances = boxes.view(len(boxes), 4, self.bins, -1).softmax(2)
        return (distances * self.centres.view(1, 1, -1, 1)).sum(2), scores.sigmoid()


def build(*names: str, seed: int = 0, width: int = 32) -> nn.Module:
    """A net whose every parameter and statistic is drawn at random, so that nothing hides behind a one or a zero."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = Net(*names, width=width).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for name, buffer in net.named_buffers():
            if "running_var" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return net


def picture(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
