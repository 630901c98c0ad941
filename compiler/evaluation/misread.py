"""Whether a recipe says how the net is really to be fed and read, asked of labelled samples. Pure, but for running it.

Every hop is held to what fp32 torch made of the recipe's own reading, so no hop sees that the reading is wrong: that
pixels are not divided by 255, that labels are in another order, that boxes are corners. Samples whose truth is known
see it. Three signs, none of which a sound net gives:

- *another reading is right far more often*: one of the usual mistakes, undone, gains five points beyond doubt;
- *labels are exchanged*: for some labels, the net's names for their samples are one another's, one to one;
- *guessing does as well*: the mean over classes of what is named rightly is that of a coin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from compiler.data.dataset import Labelled
from compiler.evaluation import accuracy
from skerry.manifest import Classification, Detection, Interface, Preprocess
from skerry.wire import Answer

MAX_ASKED = 256  # samples: enough to tell five points from none
MAX_IMAGES = 32  # with boxes, each of which counts; a wrong reading lets thousands of them through suppression
MIN_ASKED = 30  # fewer tell a coin from a net only sometimes; an image with boxes tells more
_GAIN = 5.0  # points, lower end of the 95 % interval: no recipe is this far off on purpose
_LEAST = 0.05  # of the way from guessing to always right
_FEW = 10  # samples of exchanged labels: fewer are an accident
_LISTED = 4
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Answers = Sequence[Sequence[Answer]]


def doubt(interface: Interface, samples: Sequence[Labelled], answer: Callable[[Interface], Answers]) -> str | None:
    """Why the recipe's reading of the net cannot be right, or None.

    Args:
        samples: as `asked` chooses them.
        answer: what the fp32 net says about them if it is fed and read as an interface says.
    """
    if len(samples) < (MIN_ASKED if isinstance(interface.postprocess, Classification) else 1):
        return None
    said = answer(interface)
    found = _exchanged(samples, said) if isinstance(interface.postprocess, Classification) else None
    return found or _better_reading(interface, samples, said, answer) or _no_better_than_guessing(samples, said)


def asked(interface: Interface, samples: Sequence[Labelled]) -> list[Labelled]:
    """Some of the samples, evenly over them: no more than it takes."""
    in_order = sorted(samples, key=lambda s: s.sample.path)
    most = MAX_ASKED if isinstance(interface.postprocess, Classification) else MAX_IMAGES
    count = min(len(samples), most)
    return [in_order[k * len(samples) // count] for k in range(count)]


# --- other readings --------------------------------------------------------------------------------------------------


def _better_reading(
    interface: Interface, samples: Sequence[Labelled], said: Answers, answer: Callable[[Interface], Answers]
) -> str | None:
    """The reading that is surely right more often by five points, and most of all."""
    gains = {}
    for words, other in readings(interface):
        found = accuracy.compare(interface, samples, said, answer(other))
        if -found.drop.at_most > _GAIN:
            gains[words] = found
    if not gains:
        return None
    words, best = min(gains.items(), key=lambda gain: gain[1].drop.points)
    return (
        f"the recipe does not read this net as it was trained: {best.metric} of fp32 is {best.reference:.1f} % on "
        f"{len(samples)} samples of --eval, and {best.value:.1f} % with {words}; correct the recipe"
    )


def readings(interface: Interface) -> Iterator[tuple[str, Interface]]:
    """What recipes are usually wrong about, each put otherwise, in words."""
    for words, pre in _preparations(interface.preprocess):
        if pre != interface.preprocess:
            yield words, msgspec.structs.replace(interface, preprocess=pre)
    if isinstance(post := interface.postprocess, Detection):
        other = {"xyxy": "cxcywh", "cxcywh": "xyxy"}[post.box_format]
        units = {"fraction": "pixel", "pixel": "fraction"}[post.box_units]
        for changes in ({"box_format": other}, {"box_units": units}, {"box_format": other, "box_units": units}):
            words = " and ".join(f'{key} = "{value}"' for key, value in changes.items())
            yield words, msgspec.structs.replace(interface, postprocess=msgspec.structs.replace(post, **changes))


def _preparations(pre: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    if pre.color != "gray":
        color = {"rgb": "bgr", "bgr": "rgb"}[pre.color]
        yield f'color = "{color}"', msgspec.structs.replace(pre, color=color)
        mean, std = _IMAGENET
        yield "ImageNet's mean and std", msgspec.structs.replace(pre, scale=1 / 255, mean=mean, std=std)
    scale, said = (1.0, "1") if pre.scale < 1 / 16 else (1 / 255, "1/255")
    yield f"scale = {said}", msgspec.structs.replace(pre, scale=scale)
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        middle, reach = (-low / (high - low),), (1 / (high - low),)
        words = f"pixels from {low:g} to {high:g}"
        yield words, msgspec.structs.replace(pre, scale=1 / 255, mean=middle, std=reach)
    if all(pre.mean):
        yield "mean and std exchanged", msgspec.structs.replace(pre, mean=pre.std, std=pre.mean)


# --- labels ----------------------------------------------------------------------------------------------------------


def _exchanged(samples: Sequence[Labelled], said: Answers) -> str | None:
    """Labels whose samples are called by one another's names.

    A net that is merely bad calls shirts coats, but coats coats too. Labels are matched to what their samples are
    called, one to one, the surest first; those that are matched to another are exchanged if that makes more than half
    of their samples right, and more than twice as many as now.
    """
    pairs = Counter((s.label, found[0].label) for s, found in zip(samples, said, strict=True) if found and s.label)
    total = Counter(s.label for s in samples if s.label)
    matched: dict[str, str] = {}
    for (label, name), count in sorted(pairs.items(), key=lambda p: (-p[1] / total[p[0][0]], p[0])):
        if label not in matched and name not in matched.values() and count > 1:
            matched[label] = name
    moved = {label: name for label, name in matched.items() if label != name}
    held, now = sum(total[m] for m in moved), sum(pairs[m, m] for m in moved)
    then = sum(pairs[label, name] for label, name in moved.items())
    if len(moved) < 2 or held < _FEW or then <= held / 2 or then <= 2 * now:
        return None
    listed = ", ".join(f"{label!r} are called {name!r}" for label, name in sorted(moved.items())[:_LISTED])
    more = f" and {len(moved) - _LISTED} more" if len(moved) > _LISTED else ""
    return (
        f"the labels are not in the order of the net's scores: most samples of {listed}{more}; of {held} such samples "
        f"{now} are right, with the labels exchanged {then} would be; put the lines of the labels in order (--labels)"
    )


def _no_better_than_guessing(samples: Sequence[Labelled], said: Answers) -> str | None:
    if not all(sample.label for sample in samples):
        return _finds_nothing(samples, said)
    total = Counter(s.label for s in samples)
    right = Counter(s.label for s, found in zip(samples, said, strict=True) if accuracy.is_right(found, s))
    mean, chance = sum(right[label] / count for label, count in total.items()) / len(total), 1 / len(total)
    if len(total) < 2 or mean - chance >= _LEAST * (1 - chance):
        return None
    return (
        f"fp32 itself is no better than guessing: it names {mean:.1%} rightly, mean of {len(total)} classes on "
        f"{len(samples)} samples of --eval, and guessing {chance:.1%}; check weights, labels and pre-processing"
    )


def _finds_nothing(samples: Sequence[Labelled], said: Answers) -> str | None:
    found = accuracy.ap50(accuracy.match(samples, said), np.ones(len(samples)))
    if found >= 100 * _LEAST:
        return None
    return (
        f"fp32 itself finds next to nothing of what is to be found: AP50 {found:.1f} % on {len(samples)} samples of "
        "--eval; check weights, labels, box_format, box_units and pre-processing"
    )
