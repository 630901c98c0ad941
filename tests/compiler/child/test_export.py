"""What torch's exporter breaks is mended before anybody reads the file."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch

from compiler.child.export import to_onnx

pytestmark = pytest.mark.slow  # torch's exporter takes seconds


class Clamped(torch.nn.Module):
    """One value between several pairs of learned bounds, as in nets that were trained for a grid (Gemma 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        value = image * 2 + 0.1
        return torch.cat([torch.clamp(value, -bound, bound) for bound in self.bounds.unbind()], 1)


def test_two_clamps_of_one_value_keep_their_own_bounds():
    model, image = Clamped().eval(), torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    made = to_onnx(model, [1, 3, 4, 4], "image", ["values"], None).model_proto
    onnx.checker.check_model(made, full_check=True)
    (found,) = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(image))
