"""A pass through the layers that can go on where it was ended: what left the last finished layer, in files.

Behind each layer the states of all batches and what has been learned so far are written to a folder, and
then, under a name of its own, which layer that was. So a run that is killed loses a layer at most. States of
the last layer of a stack stay, since an encoder-decoder's decoder begins with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.files import explained
from ..core.system_files import rename, synced

if TYPE_CHECKING:
    import torch

    from .states import Kept

Arrays = Mapping[str, npt.NDArray[Any]]
Learned = tuple[Mapping[str, Any], Arrays]
"""What a pass has learned so far: what JSON can say of it, and arrays by name."""

MARK = "pass.json"
"""The file that says how far a pass came; where it is missing there is nothing to go on from."""


class SavedPass:
    """A pass that is saved in ``folder``, an existing one; ``asked`` says of what it is.

    ``learned`` gives what has been learned so far, whenever a layer is done. ``layers`` are those an earlier
    pass has done, if it was of the very same; ``before`` is what that had learned.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], learned: Callable[[], Learned]) -> None:
        self._folder, self._asked, self._learned = folder, dict(asked), learned
        self._ends: list[int] = []
        self.layers = 0
        self.before: Learned | None = None
        self._take_up()

    def load(self, layer: int, batch: int) -> dict[int, torch.Tensor]:
        """What left that layer for a batch, by its place in the output. Raises EnvironmentProblem."""
        import torch

        path = self._state(layer, batch)
        with explained(path), np.load(path, allow_pickle=False) as file:
            return {int(place): torch.from_numpy(file[place]) for place in file.files}

    def keep(self, layer: int, states: Sequence[Mapping[int, Kept]], *, ends: bool) -> None:
        """A layer is done, the last of its stack where it ``ends`` one. Raises EnvironmentProblem."""
        with explained(self._folder, elsewhere="name a folder with more room"):
            for batch, state in enumerate(states):
                arrays = {str(place): kept.get().numpy() for place, kept in state.items()}
                self._write(self._state(layer, batch), arrays)
            content, results = self._learned()
            self._write(self._folder / f"learned-{layer}.npz", results)
            self._ends += [layer] if ends else []
            said = {"asked": self._asked, "layers": layer + 1, "ends": self._ends, "learned": content}
            temporary = self._folder / f"{MARK}.new"
            temporary.write_text(json.dumps(said), encoding="utf-8")
            synced(temporary)
            rename(temporary, self._folder / MARK)
            for old in self._folder.glob("*.npz"):
                number = int(old.stem.split("-")[1])
                if number < layer and (old.stem.startswith("learned") or number not in self._ends):
                    old.unlink(missing_ok=True)

    def _state(self, layer: int, batch: int) -> Path:
        return self._folder / f"state-{layer}-{batch}.npz"

    def _write(self, path: Path, arrays: Arrays) -> None:
        with open(path, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        synced(path)

    def _take_up(self) -> None:
        """What an earlier pass of the same has left; nothing where it cannot be relied on."""
        try:
            said = json.loads((self._folder / MARK).read_text("utf-8"))
            if said["asked"] != json.loads(json.dumps(self._asked)):
                return
            layers, ends = int(said["layers"]), [int(each) for each in said["ends"]]
            with np.load(self._folder / f"learned-{layers - 1}.npz", allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            self.before = said["learned"], arrays
            self.layers, self._ends = layers, ends
        except (OSError, ValueError, LookupError, TypeError):
            return
