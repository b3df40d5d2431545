"""A pass that can go on where it was ended: what left the last finished layer, in files.

Behind each layer the states of all batches and what has been learned so far are written to a folder, and
then, under a name of its own, which layer that was. So a run that is killed loses a layer at most. States of
the last layer of a stack stay, since an encoder-decoder's decoder begins with them.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.errors import EnvironmentProblem
from ..core.files import explained
from ..core.sizes import size_text
from ..core.system_files import rename, synced

if TYPE_CHECKING:
    import torch

    from .states import Kept

Arrays = Mapping[str, npt.NDArray[Any]]
Learned = tuple[Mapping[str, Any], Arrays]
"""What a pass has learned so far: what JSON can say of it, and arrays by name."""

MARK = "pass.json"
"""The file that says how far a pass came; where it is missing there is nothing to go on from."""


def _nothing() -> Learned:
    return {}, {}


class SavedPass:
    """A pass that is saved in ``folder``, an existing one; ``asked`` says of what it is.

    ``learned`` gives what has been learned so far, whenever a layer is done. ``layers`` are those an earlier
    pass has done, if it was of the very same; ``before`` is what that had learned.
    """

    def __init__(
        self, folder: Path, asked: Mapping[str, Any], learned: Callable[[], Learned] = _nothing
    ) -> None:
        self._folder, self._asked, self._learned = folder, dict(asked), learned
        self._ends: dict[str, list[Any]] = {}
        self._last: list[Any] = []
        self.layers = 0
        self.before: Learned | None = None
        self._take_up()

    def load(self, layer: int, batch: int) -> dict[int, torch.Tensor]:
        """What left that layer for a batch, by its place in the output. Raises EnvironmentProblem."""
        import torch

        path = self._state(layer)
        places = self._ends.get(str(layer), self._last)[batch]
        try:
            with explained(path), np.load(path, allow_pickle=False) as file:
                # in memory of torch's own, since where memory begins decides how sums are grouped
                return {place: torch.from_numpy(file[str(number)]).clone() for place, number in places}
        except (zipfile.BadZipFile, EOFError, LookupError, TypeError, ValueError) as error:
            raise EnvironmentProblem(
                f"{path} is damaged", hint="leave out --resume to start from the beginning"
            ) from error

    def keep(self, layer: int, states: Sequence[Mapping[int, Kept]], *, ends: bool) -> None:
        """A layer is done, the last of its stack where it ``ends`` one. Raises EnvironmentProblem."""
        with explained(self._folder, elsewhere="name a folder with more room"):
            numbers = {id(kept): number for number, kept in enumerate(_distinct(states))}
            places = [[[place, numbers[id(kept)]] for place, kept in state.items()] for state in states]
            self._write_states(layer, _distinct(states))
            content, results = self._learned()
            with open(path := self._folder / f"learned-{layer}.npz", "wb") as file:
                np.savez(file, **results)  # type: ignore[arg-type]
            synced(path)
            self._last, self._ends = places, {**self._ends, **({str(layer): places} if ends else {})}
            said = {
                "asked": self._asked,
                "layers": layer + 1,
                "states": places,
                "ends": self._ends,
                "learned": content,
            }
            temporary = self._folder / f"{MARK}.new"
            temporary.write_text(json.dumps(said), encoding="utf-8")
            synced(temporary)
            rename(temporary, self._folder / MARK)
            for old in self._folder.glob("*.npz"):
                number = old.stem.split("-")[1]
                if int(number) < layer and (old.stem.startswith("learned") or number not in self._ends):
                    old.unlink(missing_ok=True)

    def _write_states(self, layer: int, states: Sequence[Kept]) -> None:
        """Each once, whoever has it; one at a time, since all together may be more than the memory holds."""
        path = self._state(layer)
        with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for number, kept in enumerate(states):
                with archive.open(f"{number}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, kept.get().numpy(), allow_pickle=False)
        synced(path)

    def _state(self, layer: int) -> Path:
        return self._folder / f"state-{layer}.npz"

    def _take_up(self) -> None:
        """What an earlier pass of the same has left; nothing where it cannot be relied on."""
        try:
            said = json.loads((self._folder / MARK).read_text("utf-8"))
            if said["asked"] != json.loads(json.dumps(self._asked)):
                return
            layers, ends, last = int(said["layers"]), dict(said["ends"]), list(said["states"])
            with np.load(self._folder / f"learned-{layers - 1}.npz", allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            for layer in (*ends, layers - 1):
                if not zipfile.is_zipfile(self._state(int(layer))):
                    return
            self.before = said["learned"], arrays
            self.layers, self._ends, self._last = layers, ends, last
        except (OSError, EOFError, ValueError, LookupError, TypeError, OverflowError, zipfile.BadZipFile):
            return


class SparePass(SavedPass):
    """A pass that is saved while there is room for it, and else goes on unsaved; ``told`` is told once.

    It takes at most half of what is free on the disk, and ``MOST`` bytes, for what leaves a layer.
    """

    MOST = 4 << 30

    def __init__(
        self,
        folder: Path,
        asked: Mapping[str, Any],
        told: Callable[[str], None],
        learned: Callable[[], Learned] = _nothing,
    ) -> None:
        super().__init__(folder, asked, learned)
        self._told, self._stopped = told, False

    def keep(self, layer: int, states: Sequence[Mapping[int, Kept]], *, ends: bool) -> None:
        """A layer is done, the last of its stack where it ``ends`` one."""
        if self._stopped:
            return
        needed = sum(kept.bytes for kept in _distinct(states))
        try:
            with explained(self._folder):
                free = shutil.disk_usage(self._folder).free
            if needed <= min(self.MOST, free // 2):
                super().keep(layer, states, ends=ends)
                return
            reason = f"{size_text(needed)} are needed for a layer, {size_text(free)} are free"
        except EnvironmentProblem as error:
            reason = error.message
        self._stopped = True
        if layer >= self.layers:
            self._state(layer).unlink(missing_ok=True)
        self._told(f"warning: from here on layers are not kept for --resume: {reason}")


def _distinct(states: Sequence[Mapping[int, Kept]]) -> list[Kept]:
    """All that are waiting, each once: batches and ways share what is equal."""
    return list({id(kept): kept for state in states for kept in state.values()}.values())
