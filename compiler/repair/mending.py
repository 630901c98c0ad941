"""``--repair``: mends a variant that its hop refused, with the layout and the measure that it was refused by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.evaluation import compare
from compiler.evaluation.compare import Hop, Reference
from compiler.evidence.layers import find_twins, sqnr
from compiler.quantization import correct, quantize
from compiler.quantization.units import fusion_units
from compiler.repair.repair import Findings, Layout, Mended, mend
from skerry.manifest import Limits

_LOOKED_AT = 2  # frames: enough to see where an error begins
_FITTED = 8  # calibration frames: enough to see which range does not fit


class OnnxBench:
    """Builds in one of ONNX Runtime's layouts, biases corrected, and measures against the reference, literally.

    Args:
        layout: see compiler/quantization/quantize.py.
        tensors: calibration inputs, for the correction of biases.
        failed: the hop to mend; its name and limit are those of each attempt.
    """

    def __init__(
        self,
        layout: str,
        reference: Reference,
        limits: Limits,
        tensors: Sequence[NDArray[np.float32]],
        failed: Hop,
        threads: int,
    ) -> None:
        self._layout, self._reference, self._limits, self._threads = layout, reference, limits, threads
        self.tensors, self.failed = tensors, failed

    def build(self, layout: Layout) -> onnx.ModelProto:
        made = quantize.laid_out(layout.graph, layout.ranges, layout=self._layout, keep_float=layout.keep_float)
        correct.correct_biases(made, layout.graph, self.tensors, self._threads, _unheard)
        return made

    def looked_at(self) -> list[NDArray[np.float32]]:
        """Inputs of the reference to see the layers' errors on."""
        return [self._reference.input(index) for index in range(min(_LOOKED_AT, len(self._reference.frames)))]

    def measure(self, model: onnx.ModelProto) -> Hop:
        run, limit = compare.literally(model), self.failed.limit_db
        return compare.compare_model(self.failed.name, self._reference, run, self._limits, limit)


def mend_onnx(
    variant: str, refused: onnx.ModelProto, layout: Layout, bench: OnnxBench, progress: Callable[[str], None]
) -> Mended:
    """Tries to bring ``refused``, which was built by ``layout``, back into tolerance; ``Mended.hop`` says if it is.

    The mended model is ``bench.build(mended.layout)``.
    """
    twins = find_twins(layout.graph, refused)
    pairs = {t.value: t.found for t in twins if t.value is not None and t.found is not None}
    findings = Findings(sqnr(layout.graph, refused, pairs, bench.looked_at()), bench.tensors[:_FITTED])
    return mend(variant, layout, bench.failed, bench, fusion_units(layout.graph), findings, progress)


def _unheard(_text: str) -> None:
    """Progress within a build that nobody reads."""
