"""``bundle.json``: what a release runs, and how it proves itself.

Laws: the document is kept as bytes, and `Manifest.parse` only views it, so a field of a later minor version survives
here untouched; the release id is the SHA-256 of those bytes; a higher major version is refused, never guessed.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Annotated, Literal, Union

import msgspec
from typing_extensions import Self

from skerry.archive import plain_path
from skerry.documents import parse
from skerry.errors import FormatError

FORMAT = "skerry.bundle/1.0"
MAX_BYTES = 16 << 20

_FORMAT = re.compile(r"skerry\.bundle/([0-9]{1,4})\.([0-9]{1,4})")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Positive = Annotated[int, msgspec.Meta(gt=0)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
VariantId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Tensor(msgspec.Struct, frozen=True):
    """A model's input or output. Image inputs are 4-D with batch 1; ``shape`` has no symbols in format 1."""

    name: str
    dtype: Literal["float32", "uint8", "int64"]
    shape: list[Positive]


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """From an RGB uint8 frame of any size to the input tensor: resize, then ``(pixel * scale - mean) / std``.

    Attributes:
        resize: "crop" scales the shorter side to ``resize_to`` and takes the centre, "letterbox" fits the whole frame
            and pads with ``pad_value``, "stretch" ignores the aspect ratio.
        antialias: bilinear over the source pixels that a target pixel covers, rounded to 8 bits after each axis, as
            Pillow does; without it, over the nearest two, as OpenCV does.
        scale: multiplies the pixel value, 1/255 as a rule.
        mean, std: per channel, in the order of ``color``.
    """

    color: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: Literal["crop", "letterbox", "stretch"]
    resize_to: Positive | None = None
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    antialias: bool = True
    pad_value: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"


class Classification(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="classification"):
    """The ``top`` labels of one score vector."""

    scores: str
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    top: Positive = 5
    min_score: Fraction = 0.0


class Detection(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="detection"):
    """Boxes from two tensors, ``boxes`` [1, N, 4] and ``scores`` [1, N, classes], by class-wise suppression.

    Attributes:
        box_format: corners (x0, y0, x1, y1) or centre and size (cx, cy, w, h).
        box_units: fractions of the input's width and height, or its pixels.
        background: the index of the class that means "nothing", if there is one.
        iou_threshold: of two boxes of one class that overlap by more, the lower-scored goes.
    """

    boxes: str
    scores: str
    box_format: Literal["xyxy", "cxcywh"] = "xyxy"
    box_units: Literal["fraction", "pixel"] = "fraction"
    activation: Literal["softmax", "sigmoid", "none"] = "none"
    background: Natural | None = None
    min_score: Fraction = 0.5
    iou_threshold: Fraction = 0.5
    max_boxes: Positive = 100


Postprocess = Union[Classification, Detection]


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU and the runtime on it that a variant was made for.

    Attributes:
        sm: the GPU's compute capability, "8.7".
        at_least, below: versions of the variant's backend: from the first on, up to but without the second.
        l4t: Jetson Linux releases by their first numbers ("36.4" holds 36.4.3 too); empty where there is none.
        system: what people call it: "jp6.2".
    """

    sm: str
    at_least: str
    below: str
    l4t: list[str] = []
    system: str = ""


class Requires(msgspec.Struct, frozen=True, kw_only=True):
    """What a device must have for a variant to be eligible. An empty list asks for nothing.

    Attributes:
        accelerators: one of these it must have. Not written where a variant needs none, as in format 1.0.
    """

    arch: list[str] = []
    cpu: list[str] = []
    accelerators: Union[list[Accelerator], msgspec.UnsetType] = msgspec.UNSET


class Weight(msgspec.Struct, frozen=True):
    """Where one tensor lies in an external data file; updates move the ones whose digest changed."""

    name: str
    file: str
    offset: Natural
    size: Positive
    sha256: Sha256


class InGraph(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant's own graph does besides the net. See docs/in-graph.md.

    Attributes:
        frame: height and width of the frames that it takes, uint8 [1, height, width, 3] RGB, as `FRAMES`. The net's
            input tensor is then one of its outputs, so that a proof still sees it. Null: it takes the input tensor.
        answers: it also gives the answers, as the tensors of `answer_tensors`.
    """

    frame: tuple[Positive, Positive] | None = None
    answers: bool = False


FRAMES = "frames"
ANSWER_BOXES, ANSWER_SCORES = "answer_boxes", "answer_scores"
ANSWER_CLASSES, ANSWER_COUNT, ANSWER_MISSED = "answer_classes", "answer_count", "answer_missed"


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the release: ``backend`` loads ``model``, which reads ``files``, all under ``variants/<id>/``.

    Attributes:
        graph: what its graph does besides the net; null in most releases. An older Skerry does not know it, finds
            other tensors in the model than the manifest promises, and refuses the release.
    """

    id: VariantId
    backend: str
    precision: str
    requires: Requires
    model: str
    files: list[str]
    weights: list[Weight] = []
    graph: InGraph | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a proof must reach. They come from policy and the fp32 reference, never from a candidate's own error.

    Attributes:
        min_input_sqnr_db: the input tensor against the reference's own pre-processing.
        min_sqnr_db: every output tensor against the fp32 reference, pooled over the frames.
        min_agreement: share of the decided answers that are the same.
        min_margin: an answer is decided if the fp32 reference's score clears its rival (the second label, or the
            detection threshold) by at least this much.
        max_time_ratio: median time over that of the bundle's fp32 variant, where both run on the device.
    """

    min_input_sqnr_db: float = 40.0
    min_sqnr_db: float = 15.0
    min_agreement: Fraction = 0.9
    min_margin: Fraction = 0.2
    max_time_ratio: float = 2.0


# The compiler refuses a recipe that asks for less, and a device holds every bundle to at least this, whatever it says.
FLOOR = Limits(min_input_sqnr_db=30.0, min_sqnr_db=10.0, min_agreement=0.8, min_margin=0.25, max_time_ratio=4.0)


def tighter(ours: Limits, theirs: Limits) -> Limits:
    """The stricter of two limits, one by one. A smaller margin is stricter: it counts more answers as decided."""
    return Limits(
        min_input_sqnr_db=max(ours.min_input_sqnr_db, theirs.min_input_sqnr_db),
        min_sqnr_db=max(ours.min_sqnr_db, theirs.min_sqnr_db),
        min_agreement=max(ours.min_agreement, theirs.min_agreement),
        min_margin=min(ours.min_margin, theirs.min_margin),
        max_time_ratio=min(ours.max_time_ratio, theirs.max_time_ratio),
    )


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Raw frames and what the fp32 reference made of them.

    Attributes:
        frames: safetensors file; "frame/<i>" is uint8 [height, width, 3] RGB at source size.
        reference: safetensors file; "output/<name>/<i>" fp32 of the reference, "input/<i>" fp32 for the first
            ``inputs`` frames, by the reference's own pre-processing.
        answers: JSON file, a list of lists of `skerry.wire.Answer`: the reference's decoded answers.
    """

    count: Positive
    inputs: Positive
    frames: str
    reference: str
    answers: str
    limits: Limits
    licence: str
    consent: str


class File(msgspec.Struct, frozen=True):
    """One file of the release: what it is and what it must hash to."""

    path: str
    media_type: str
    size: Natural
    sha256: Sha256


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into a release and what comes out, whatever runs in between.

    Attributes:
        batch: the least and the most images that its ONNX graphs take at once, each compared with the reference; null
            where it is one. Tensors are described, and run on devices, at batch 1.
    """

    format: str
    name: str
    version: Positive
    task: Literal["classification", "detection"]
    inputs: list[Tensor]
    outputs: list[Tensor]
    preprocess: Preprocess
    postprocess: Postprocess
    labels: list[str]
    batch: tuple[Positive, Positive] | None = None

    def input_channels(self) -> int:
        shape = self.inputs[0].shape
        return shape[1] if self.preprocess.layout == "nchw" else shape[3]

    def input_size(self) -> tuple[int, int]:
        """Height and width of the input tensor."""
        shape = self.inputs[0].shape
        return (shape[2], shape[3]) if self.preprocess.layout == "nchw" else (shape[1], shape[2])

    def answer_tensors(self) -> list[Tensor]:
        """What a graph that decodes gives for one frame: answers in order, best first, filled up with zeros.

        Classification: scores and classes. Detection: boxes (corners, as fractions of the frame, or of the input where
        the graph does not know the frame), scores, classes, how many there are, and how many scores over the threshold
        the graph did not look at.
        """
        post = self.postprocess
        scores = next(t.shape for t in self.outputs if t.name == post.scores)
        if isinstance(post, Classification):
            found = min(max(2, post.top), math.prod(scores))  # two at least: a proof asks for the best's lead
            return [Tensor(ANSWER_SCORES, "float32", [1, found]), Tensor(ANSWER_CLASSES, "int64", [1, found])]
        classes = scores[-1] - (post.background is not None)
        found = min(post.max_boxes, classes * math.prod(scores[:-1]))
        return [
            Tensor(ANSWER_BOXES, "float32", [1, found, 4]),
            Tensor(ANSWER_SCORES, "float32", [1, found]),
            Tensor(ANSWER_CLASSES, "int64", [1, found]),
            Tensor(ANSWER_COUNT, "int64", [1]),
            Tensor(ANSWER_MISSED, "int64", [1]),
        ]

    def tensors(self, graph: InGraph | None) -> tuple[list[Tensor], list[Tensor]]:
        """The inputs and outputs of a model whose graph does that much."""
        inputs, outputs = self.inputs, self.outputs
        if graph is not None and graph.frame is not None:
            inputs, outputs = [Tensor(FRAMES, "uint8", [1, *graph.frame, 3])], [*outputs, *inputs]
        return inputs, [*outputs, *self.answer_tensors()] if graph is not None and graph.answers else outputs

    def check(self) -> None:
        """Raises `FormatError` if the parts contradict each other."""
        check_name(self.name)
        _require(len(self.inputs) == 1 and len(self.inputs[0].shape) == 4, "expected one 4-D image input")
        _require(self.inputs[0].shape[0] == 1, "expected batch 1")
        _require(self.batch is None or self.batch[0] <= self.batch[1], "its batches end before they begin")
        pre, post = self.preprocess, self.postprocess
        _require(pre.resize != "crop" or pre.resize_to is not None, "resize = crop needs resize_to")
        channels = 1 if pre.color == "gray" else 3
        _require(self.input_channels() == channels, f"color {pre.color} needs {channels} input channel(s)")
        _require({len(pre.mean), len(pre.std)} <= {1, channels}, f"mean and std need 1 or {channels} values")
        _require(0.0 not in pre.std, "std has a zero")
        outputs = {t.name for t in self.outputs}
        used = {post.scores, post.boxes} if isinstance(post, Detection) else {post.scores}
        _require(used <= outputs, f"post-processing reads {sorted(used - outputs)}, outputs are {sorted(outputs)}")
        _require(len(outputs) == len(self.outputs), "two outputs have one name")
        _require(post.__struct_config__.tag == self.task, f"task {self.task} does not fit its post-processing")
        if isinstance(post, Detection):
            classes = next(t.shape[-1] for t in self.outputs if t.name == post.scores)
            _require(len(self.labels) == classes, f"a detector of {classes} classes needs as many labels")
            _require(post.background is None or post.background < classes, "background is beyond its classes")


class Manifest(Interface, frozen=True, kw_only=True):
    """A view of ``bundle.json``."""

    variants: list[Variant]
    proof: Proof
    files: list[File]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Views ``raw``, after every check that needs no other file.

        Raises:
            FormatError: garbled, of another major version, or contradicting itself.
            UnsafePath: a path in it is not plain.
        """
        _check_version(raw)
        manifest = parse(raw, cls, "bundle.json was not made by Skerry's compiler")
        manifest.check()
        return manifest

    def dump(self) -> bytes:
        return msgspec.json.encode(self)

    def variant(self, variant_id: str) -> Variant:
        return next(v for v in self.variants if v.id == variant_id)

    def variant_files(self, chosen: set[str]) -> set[str]:
        """The paths that a device needs for the ``chosen`` variants, the proof included."""
        unchosen = {path for v in self.variants if v.id not in chosen for path in v.files}
        return {file.path for file in self.files} - unchosen

    def check(self) -> None:
        """Raises `FormatError` or `UnsafePath` if the parts contradict each other."""
        super().check()
        paths = [plain_path(file.path) for file in self.files]
        _require(paths == sorted(set(paths)), "its files are doubled or not in order")
        listed = set(paths)
        proof_files = {self.proof.frames, self.proof.reference, self.proof.answers}
        needed = set(proof_files)
        _require(bool(self.variants), "it has no variant")
        _require(len({v.id for v in self.variants}) == len(self.variants), "two variants have one id")
        for v in self.variants:
            folder = f"variants/{v.id}/"
            _require(
                all(f.startswith(folder) for f in [v.model, *v.files]), f"variant {v.id} has files outside {folder}"
            )
            _require(v.model in v.files, f"variant {v.id} does not list its own model")
            _require(
                all(w.file in v.files for w in v.weights), f"variant {v.id} has weights in a file it does not list"
            )
            needed.update(v.files)
        in_variant = any(path.startswith("variants/") for path in proof_files)
        _require(not in_variant, "its proof lies in a variant's folder")
        _require(self.proof.inputs <= self.proof.count, "its proof has more inputs than frames")
        both = {path[:end] for path in paths for end, c in enumerate(path) if c == "/"} & listed
        _require(not both, f"file and folder at once: {', '.join(sorted(both))}")
        _require(needed <= listed, f"files are used but not listed: {', '.join(sorted(needed - listed)[:3])}")
        sizes = {file.path: file.size for file in self.files}
        inside = all(w.offset + w.size <= sizes[w.file] for v in self.variants for w in v.weights)
        _require(inside, "a weight lies beyond its file")


class _Versioned(msgspec.Struct, frozen=True):
    format: str


def _check_version(raw: bytes) -> None:
    text = parse(raw, _Versioned, "bundle.json is not a bundle's manifest").format
    match = _FORMAT.fullmatch(text)
    if match is None or match[1] != "1":
        raise FormatError(f"bundle.json has format {text[:40]!r}; this Skerry reads skerry.bundle/1.x: update Skerry")


def _require(held: bool, why: str) -> None:  # noqa: FBT001 - reads as a sentence where it is used
    if not held:
        raise FormatError(f"the release contradicts itself: {why}")


def check_name(name: str) -> None:
    """Raises `FormatError` for what is no release's name."""
    _require(_NAME.fullmatch(name) is not None, f"name {name!r} is not 1 to 64 of a-z 0-9 . _ -")


def release_id(raw: bytes) -> str:
    """The release's one name: SHA-256 of the bytes of its ``bundle.json``, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What decides which variants a device may run. Read once by `skerry.execution.device`.

    Attributes:
        sm: the GPU's compute capability, "8.7"; null where there is no GPU that a backend could use.
        l4t: the release of Jetson Linux, "36.4.3"; null where it is none.
        versions: of what a backend runs on, by backend.
    """

    arch: str
    cpu: list[str]
    backends: list[str]
    sm: Union[str, None] = None
    l4t: Union[str, None] = None
    versions: dict[str, str] = {}


def why_not(backend: str, requires: Requires, facts: DeviceFacts) -> str | None:
    """Why a device cannot run what needs ``backend`` and ``requires``, or None if it can.

    Pure: what really loads is then for the proof to show.
    """
    if backend not in facts.backends:
        return f"needs backend {backend}, here: {', '.join(facts.backends) or 'none'}"
    if requires.arch and facts.arch not in requires.arch:
        return f"needs {' or '.join(requires.arch)}, this is {facts.arch}"
    missing = [feature for feature in requires.cpu if feature not in facts.cpu]
    if missing:
        return f"needs CPU feature {', '.join(missing)}"
    accelerators = requires.accelerators or []
    if not accelerators or any(_fits(a, facts, facts.versions.get(backend, "")) for a in accelerators):
        return None
    has = [f"SM {facts.sm}" if facts.sm else "no GPU", f"{backend} {facts.versions.get(backend, 'of unknown version')}"]
    wanted = " or ".join(dict.fromkeys(_in_words(a, backend) for a in accelerators))
    return f"needs {wanted}; this is {', '.join([*has, f'Jetson Linux {facts.l4t}'][: 3 if facts.l4t else 2])}"


def _fits(wanted: Accelerator, facts: DeviceFacts, version: str) -> bool:
    if facts.sm != wanted.sm or not numbers(wanted.at_least) <= numbers(version) < numbers(wanted.below):
        return False
    here = numbers(facts.l4t or "")
    return not wanted.l4t or any(here[: len(numbers(release))] == numbers(release) for release in wanted.l4t)


def needs(backend: str, requires: Requires) -> str:
    """What a variant asks of a device, in words."""
    parts = [" or ".join(requires.arch), *requires.cpu]
    parts += [" or ".join(dict.fromkeys(_in_words(a, backend) for a in requires.accelerators or []))]
    return ", ".join(filter(None, parts)) or "any CPU"


def _in_words(wanted: Accelerator, backend: str) -> str:
    system = f", {wanted.system} (Jetson Linux {' or '.join(wanted.l4t)})" if wanted.l4t else ""
    return f"SM {wanted.sm} with {backend} {wanted.at_least} to below {wanted.below}{system}"


def numbers(version: str) -> tuple[int, ...]:
    """A version, to be compared: "10.3.0.30" is (10, 3, 0, 30)."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", version))


def unsuited(manifest: Manifest, facts: DeviceFacts) -> dict[str, str]:
    """Why this device passes a variant over, by each that it does."""
    whys = {v.id: why_not(v.backend, v.requires, facts) for v in manifest.variants}
    return {variant: why for variant, why in whys.items() if why is not None}


def eligible(manifest: Manifest, facts: DeviceFacts) -> list[Variant]:
    """The variants that this device may run, in the manifest's order."""
    return [v for v in manifest.variants if why_not(v.backend, v.requires, facts) is None]
