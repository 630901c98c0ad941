"""The search on a real net, by ONNX Runtime: it finds the unit that int8 destroys, and the one that it slows down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import planted
import pytest
from passes import Passes

from compiler.candidate import Work, file_digest
from compiler.data import dataset
from compiler.data.dataset import Dataset
from compiler.search.budget import Budget
from compiler.search.choice import Trial
from compiler.search.outcome import Outcome
from compiler.search.search import Effort, Search
from compiler.search.subject import OnnxSubject, time_in_turn
from skerry.clock import SystemClock
from skerry.disk import Disk

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("search")]

EFFORT = Effort(0.5, 0.5, 0.5)


@dataclass
class Place:
    """The net, its pictures and a work directory."""

    folder: Path
    data: Dataset

    @property
    def net(self) -> Path:
        return self.folder / "net.onnx"

    def subject(self, **options: object) -> OnnxSubject:
        def lay_out(target: Path, nodes: Sequence[str], _draft: bool) -> None:  # noqa: FBT001 - as the search calls it
            planted.lay_out(self.net, target, nodes)

        return OnnxSubject(planted.UNITS, self.net, lay_out, "planted", self.work(), SystemClock(), **options)

    def work(self) -> Work:
        return Work(self.folder / "work", Disk(), SystemClock(), Passes())

    def search(self, budget: Budget, **options: object) -> Search:
        subject = self.subject(**options)
        return Search("int8", [subject], planted.interface(), self.data, budget, self.work(), Disk(), said, EFFORT)


def said(_text: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("planted")
    onnx.save(planted.model(), folder / "net.onnx")
    pictures = planted.write_pictures(folder / "pictures", 120)
    return Place(folder, dataset.split(dataset.read(pictures, planted.interface()), set()))


@pytest.fixture(scope="module")
def done(place: Place) -> tuple[Search, Outcome]:
    search = place.search(Budget(max_drop=9.0))
    return search, search.run()


def trial(search: Search, *keep: str) -> Trial:
    return next(t for t in search.trials if t.keep == frozenset(keep))


def test_the_destroyed_and_the_slowed_unit_stay_in_fp32(done: tuple[Search, Outcome]) -> None:
    _, found = done

    assert found.ships
    assert planted.DESTROYED in found.keep_float
    assert planted.SLOWED in found.keep_float
    assert len(found.keep_float) < len(planted.UNITS)
    assert found.time is not None
    assert found.time.faster


def test_plain_int8_was_measured_and_is_worse_in_both(done: tuple[Search, Outcome]) -> None:
    search, found = done
    plain = trial(search)
    chosen = trial(search, *found.keep_float)

    assert plain.drop > 50
    assert plain.cost > chosen.cost


def test_the_choice_is_confirmed_on_samples_that_the_search_never_saw(done: tuple[Search, Outcome]) -> None:
    search, found = done

    assert found.accuracy is not None
    assert found.accuracy.samples == len(search.data.report)
    assert found.accuracy.reference > 80
    assert found.accuracy.drop <= found.accuracy.drop_at_most <= 9.0
    assert found.refusal is None


def test_the_same_decision_gives_the_same_bytes(place: Place, done: tuple[Search, Outcome], tmp_path: Path) -> None:
    """What a plan replays: the nodes that stay in fp32, without a search."""
    _, found = done
    planted.lay_out(place.net, tmp_path / "again.onnx", found.nodes)

    assert found.model is not None
    assert file_digest(tmp_path / "again.onnx") == file_digest(found.model)


def test_without_labels_the_destroyed_unit_is_found_too(place: Place) -> None:
    search = place.search(Budget())
    search.data = [s.sample for s in place.data.report[:60]]

    found = search.run()

    assert planted.DESTROYED in found.keep_float
    assert found.accuracy is None


def test_what_cannot_be_run_here_is_searched_literally(place: Place) -> None:
    """Every node as it stands: the destroyed unit shows in the answers, the slowed one in nothing."""
    small = Dataset(ranking=place.data.ranking[:16], search=place.data.search[:100], report=place.data.report[:100])
    search = place.search(Budget(), here=False)
    search.data = small

    found = search.run()

    assert planted.DESTROYED in found.keep_float
    assert found.time is None


def test_models_are_timed_forwards_and_backwards(place: Place, done: tuple[Search, Outcome]) -> None:
    _, found = done
    assert found.model is not None

    times = time_in_turn([place.net, found.model, place.net], 20, SystemClock()).times_ms

    assert [len(series) for series in times] == [20, 20, 20]
    assert min(map(min, times)) > 0


def test_a_unit_that_there_is_not_is_a_mistake(place: Place) -> None:
    with pytest.raises(ValueError, match="no unit is called nowhere"):
        place.subject().build(["nowhere"])
