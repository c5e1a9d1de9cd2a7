"""robomimic HDF5.

    data               attribute env_args (JSON)
    data/demo_<i>      attributes num_samples and, not always, ep_meta (JSON)
        actions (N,A)   rewards (N,)   dones (N,)
        obs/<camera>_image (N,H,W,3) u8   obs/<camera>_depth (N,H,W,1) float m   obs/<state> (N,P) float
    mask/<filter key>  names of demonstrations

HDF5 reads what was never written as zeros, and keeps no checksums unless told to: whether all of a data set is in the
file is checked before its rows are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from padpolicy.data.actions import ActionSpec
from padpolicy.data.convert.recording import ConvertError, DamagedError, Notes, Options, action_notes
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Episode, Rows, StoreSpec

NAME = "robomimic HDF5"
_PROPRIO = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # unless options say others
_ACTION = ["x", "y", "z", "rx", "ry", "rz", "gripper"]  # of OSC_POSE; the rotation is an axis times an angle
_OUTPUT_MAX = [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]  # m and rad: robosuite's own, where a configuration does not say
_MOST_ROW_BYTES = 1 << 28


def recognises(path: Path) -> bool:
    """Is it HDF5, by its name or its first bytes?"""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return path.suffix in (".hdf5", ".h5") or stream.read(8) == b"\x89HDF\r\n\x1a\n"


class _Rows:
    """Rows of a data set, read and made ours when they are asked for."""

    def __init__(
        self, dataset: h5py.Dataset, shape: tuple[int, ...], dtype: str, make: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.shape, self.dtype = (dataset.shape[0], *shape), np.dtype(dtype)
        self._dataset, self._make = dataset, make
        self._where = f"{dataset.file.filename}: {dataset.name}"

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, behind, _ = rows.indices(self.shape[0])
        try:
            values = self._dataset[first:behind]
        except Exception as error:  # whatever libhdf5 and its filters make of damage
            raise DamagedError(f"{self._where}: rows {first}..{behind - 1} cannot be read: {error}.") from error
        with np.errstate(over="ignore"):  # infinite then
            made = self._make(values).astype(self.dtype, copy=False)
        if self.dtype.kind == "f" and not (finite := np.isfinite(made)).all():
            raise DamagedError(f"{self._where} is NaN or infinite at row {first + int(np.argwhere(~finite)[0][0])}.")
        return made


class _Beside:
    """Numbers of several data sets, side by side."""

    def __init__(self, parts: list[_Rows]) -> None:
        self.shape, self.dtype = (parts[0].shape[0], sum(part.shape[1] for part in parts)), parts[0].dtype
        self._parts = parts

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.concatenate([part[rows] for part in self._parts], 1)


class Robomimic:
    """An open robomimic file as a `Recording`."""

    def __init__(self, path: Path, options: Options) -> None:
        self.format, self.notes = NAME, Notes()
        self._path, self._options = path, options
        try:
            self._file = h5py.File(path, "r", locking=False)
        except Exception as error:  # whatever libhdf5 makes of other or damaged files
            raise ConvertError(f"{path} cannot be opened as HDF5: {error}. Restore it from a copy.") from error
        try:
            self.ids: Sequence[str] = self._find_demos()
            self._env = self._json("data", "env_args")
            kwargs = self._env.get("env_kwargs")
            self._kwargs: dict[str, Any] = kwargs if isinstance(kwargs, dict) else {}
            self.spec = self._find_spec()
        except ConvertError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise ConvertError(f"{path} cannot be read: {error!r}. Restore it from a copy.") from error

    def _find_demos(self) -> list[str]:
        """Names of the demonstrations, in the order of their numbers."""
        data = self._file.get("data")
        names = list(data) if isinstance(data, h5py.Group) else []
        demos = [name for name in names if name.startswith("demo_") and name[5:].isdecimal()]
        if not demos:
            there = ", ".join(list(self._file)[:8]) or "nothing"
            raise ConvertError(f"{self._path}: expected data/demo_<i>, as robomimic has it; the file has {there}.")
        if key := self._options.filter_key:
            masks = self._file.get("mask", {})
            if key not in masks:
                there = ", ".join(masks) or "none"
                raise ConvertError(f"{self._path}: --filter-key {key} is not in mask/; there are {there}.")
            chosen = {name.decode() if isinstance(name, bytes) else str(name) for name in masks[key][:]}
            if unknown := sorted(chosen - set(demos)):
                raise ConvertError(f"{self._path}: mask/{key} names {unknown[0]!r}, which is not in data/.")
            demos = [name for name in demos if name in chosen]
        return sorted(demos, key=lambda name: int(name[5:]))

    # -- what every demonstration has ------------------------------------------------------------------------------

    def _find_spec(self) -> StoreSpec:
        """The specification, from the first demonstration that can be read."""
        spec = StoreSpec(cameras={})
        for name in self.ids:
            try:
                return self._spec_of(name)
            except DamagedError:
                if not self._options.skip_damaged or name == self.ids[-1]:
                    raise
        return spec

    def _spec_of(self, name: str) -> StoreSpec:
        obs, options = self._observations(name), self._options
        self._task(name)
        pictures = {
            key.removesuffix("_image"): obs[key] for key in obs if key.endswith("_image") and _is_picture(obs[key])
        }
        if unknown := sorted(set(options.cameras) - set(pictures)):
            there = ", ".join(pictures) or "none"
            raise ConvertError(f"{self._path}: there is no camera {unknown[0]!r}; there are {there}.")
        sizes = {camera: list(pictures[camera].shape[1:3]) for camera in options.cameras or pictures}
        depths = [camera for camera in sizes if _is_depth(obs.get(f"{camera}_depth"), sizes[camera])]
        states = [key for key in obs if obs[key].ndim in (1, 2) and obs[key].dtype.kind == "f"]
        if unknown := [key for key in options.proprio if key not in states]:
            raise ConvertError(
                f"{self._path}: --proprio {unknown[0]}: data/{name}/obs has {', '.join(states) or 'none'}."
            )
        self._states = list(options.proprio) or [key for key in _PROPRIO if key in states]
        if self._states:
            self.notes.add(f"the proprioception is {', '.join(self._states)}; --proprio takes others.")
        used = {*self._states, *(f"{camera}_image" for camera in sizes), *(f"{camera}_depth" for camera in depths)}
        if left := [f"{key} {obs[key].shape[1:]} {obs[key].dtype}" for key in obs if key not in used]:
            self.notes.add(f"left out of obs (`object` and its like only a simulator knows): {', '.join(left)}.")
        dt_s = self._dt_s()
        shown = [options.image_size] * 2 if options.image_size else None
        names = [f"{key}_{i}" for key in self._states for i in range(math.prod(obs[key].shape[1:]))]
        robots = self._kwargs.get("robots")
        robot = robots[0] if isinstance(robots, list) and len(robots) == 1 else robots
        return StoreSpec(
            cameras={
                name: {"size": shown or size, "intrinsics": None, "extrinsics": None} for name, size in sizes.items()
            },
            depth_cameras=depths,
            proprio={"names": names, "unit": ""} if names else None,
            action=self._action_spec(self._dataset(f"data/{name}/actions"), dt_s),
            robot=options.robot or (robot if isinstance(robot, str) else ""),
            renderer="robosuite" if sizes and self._env.get("type") == 1 else "",
            dt_s=dt_s,
        )

    def _dt_s(self) -> float:
        frequency = self._kwargs.get("control_freq")
        if not self._options.fps and isinstance(frequency, int | float) and frequency > 0:
            return 1 / frequency
        return self._options.dt_s(NAME)

    def _action_spec(self, actions: h5py.Dataset, dt_s: float) -> ActionSpec:
        """What the controller's configuration says about actions; unknown where it says nothing."""
        if actions.ndim != 2 or actions.dtype.kind != "f":
            raise DamagedError(
                f"{self._path}: {actions.name} is {actions.dtype} {actions.shape}; expected floats (N, A)."
            )
        arm, n = _arm(self._kwargs.get("controller_configs")), actions.shape[1]
        if arm.get("type") != "OSC_POSE" or n != len(_ACTION):
            kind = action_notes(self.notes, "", self._options.action_kind)
            return ActionSpec(kind, [f"action_{i}" for i in range(n)], dt_s)
        scale = _scale(arm)
        delta = arm.get("control_delta", {"delta": True, "absolute": False}.get(str(arm.get("input_type"))))
        said = "absolute" if delta is False else "delta" if delta is True and scale else ""
        kind = action_notes(self.notes, said, self._options.action_kind)
        self.notes.add(
            "rx, ry, rz of an action, an axis times an angle, are stored as plain numbers: added up, not composed."
        )
        if kind == "delta" and scale:
            return ActionSpec(kind, _ACTION, dt_s, gripper="continuous", scale=scale)
        return ActionSpec(kind, _ACTION, dt_s, gripper="continuous", units=["m"] * 3 + ["rad"] * 3 + ["1"])

    # -- episodes --------------------------------------------------------------------------------------------------

    def episode(self, i: int) -> Episode:
        name, spec = self.ids[i], self.spec
        where, size = f"data/{name}", self._options.image_size
        actions = self._dataset(f"{where}/actions")
        n = actions.shape[0]
        try:
            said = int(self._file[where].attrs.get("num_samples", n))
        except Exception as error:  # whatever libhdf5 makes of damage
            raise DamagedError(f"{self._path}: num_samples of {where} cannot be read: {error}.") from error
        if said != n:
            raise DamagedError(f"{self._path}: {where} has {n} actions, but says num_samples {said}.")
        arrays: dict[str, Rows] = {"action": _Rows(actions, actions.shape[1:], "f4", _as_they_are)}
        for camera, values in spec.cameras.items():
            pictures = self._dataset(f"{where}/obs/{camera}_image", n)
            if not _is_picture(pictures) or not size and list(pictures.shape[1:3]) != values["size"]:
                raise DamagedError(
                    f"{self._path}: {pictures.name} is {pictures.dtype} {pictures.shape}, unlike the first."
                )
            arrays[f"rgb_{camera}"] = _Rows(pictures, (*values["size"], 3), "u1", _fitted(_as_they_are, size))
            if camera in spec.depth_cameras:
                depth = self._dataset(f"{where}/obs/{camera}_depth", n)
                if not _is_depth(depth, list(pictures.shape[1:3])):
                    raise DamagedError(
                        f"{self._path}: {depth.name} is {depth.dtype} {depth.shape}, unlike the pictures."
                    )
                arrays[f"depth_{camera}"] = _Rows(depth, tuple(values["size"]), "u2", _fitted(_millimetres, size))
        if self._states:
            states = [self._dataset(f"{where}/obs/{key}", n) for key in self._states]
            arrays["proprio"] = _Beside([_Rows(state, (math.prod(state.shape[1:]),), "f4", _flat) for state in states])
        for key in ("action", "proprio"):
            if key in arrays and arrays[key].shape[1:] != (expected := len(spec.fields()[key]["names"]),):
                raise DamagedError(
                    f"{self._path}: {where}: {key} has {arrays[key].shape[1:]} numbers, the first {expected}."
                )
        return Episode(arrays, self._task(name), self._success(where, n), source=self._path.name, id=name)

    def _task(self, name: str) -> str:
        return str(self._json(f"data/{name}", "ep_meta").get("lang") or self._options.instruction(NAME))

    def _success(self, where: str, n: int) -> bool:
        """Was the last step rewarded? Without rewards: is it the end? Without either a demonstration is one."""
        for key in ("rewards", "dones"):
            if key in self._file[where]:
                last = _Rows(self._dataset(f"{where}/{key}", n), (1,), "f8", _flat)[n - 1 : n]
                return bool(last.max() > 0)
        return True

    def _observations(self, name: str) -> dict[str, h5py.Dataset]:
        try:
            obs = self._file[f"data/{name}"].get("obs", {})
            return {key: obs[key] for key in sorted(obs) if isinstance(obs[key], h5py.Dataset)}
        except Exception as error:  # whatever libhdf5 makes of damage
            raise DamagedError(f"{self._path}: data/{name}/obs cannot be read: {error}.") from error

    def _json(self, where: str, name: str) -> dict[str, Any]:
        """An attribute that holds JSON; empty where there is none."""
        try:
            text = self._file[where].attrs.get(name)
            values = {} if text is None else json.loads(text)
            if not isinstance(values, dict):
                raise ValueError(f"expected a dictionary, got {type(values).__name__}")
        except Exception as error:  # whatever libhdf5 and JSON make of damage
            raise DamagedError(f"{self._path}: attribute {name} of {where} cannot be read: {error}.") from error
        return values

    def _dataset(self, where: str, n: int = 0) -> h5py.Dataset:
        """A data set of `n` rows (0: any number) that is in the file as a whole.

        Raises:  DamagedError.
        """
        try:
            found = self._file.get(where)
            if not isinstance(found, h5py.Dataset):
                raise ValueError("it is missing")
            if not found.size or n and found.shape[0] != n:
                raise ValueError(f"it has shape {found.shape}; expected {n or 'some'} rows")
            if math.prod(found.shape[1:]) * found.dtype.itemsize > _MOST_ROW_BYTES:
                raise ValueError(f"its rows are larger than any picture: {found.shape} {found.dtype}")
            here, expected, unit = _held(found)
            if here != expected:
                raise ValueError(f"the file holds {here} of its {expected} {unit}")
        except Exception as error:  # whatever libhdf5 makes of damage
            raise DamagedError(f"{self._path}: {where} cannot be read: {error}.") from error
        return found

    def close(self) -> None:
        self._file.close()


def _is_picture(dataset: h5py.Dataset) -> bool:
    return dataset.dtype == np.uint8 and dataset.ndim == 4 and dataset.shape[3] == 3


def _is_depth(dataset: h5py.Dataset | None, size: list[int]) -> bool:
    return dataset is not None and dataset.dtype.kind == "f" and dataset.shape[1:] == (*size, 1)


def _held(dataset: h5py.Dataset) -> tuple[int, int, str]:
    """How much of a data set its file holds, of how much, and what is counted."""
    if not dataset.chunks:
        return dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize, "bytes"
    n_chunks = [-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    held, expected = dataset.id.get_num_chunks(), math.prod(n_chunks)
    if held == expected:  # each of them at a place in the file
        corners = (tuple(np.multiply(index, dataset.chunks).tolist()) for index in np.ndindex(*n_chunks))
        held = sum(bool(dataset.id.get_chunk_info_by_coord(at).byte_offset) for at in corners)
    return held, expected, "chunks"


def _as_they_are(values: np.ndarray) -> np.ndarray:
    return values


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _millimetres(depth: np.ndarray) -> np.ndarray:
    """(n, H, W, 1) float metres as (n, H, W) uint16 mm; 0, for invalid, where that cannot be."""
    mm = np.rint(depth[..., 0].astype(np.float64) * 1000)
    return np.where((mm > 0) & (mm <= 65535), mm, 0).astype(np.uint16)  # NaN is neither


def _fitted(make: Callable[[np.ndarray], np.ndarray], size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Pictures letterboxed to a square of `size`; 0: as they are."""
    return (lambda values: letterbox(make(values), size)) if size else make


def _arm(config: Any) -> dict[str, Any]:
    """The configuration of the controller, if there is one arm and nothing else: robosuite 1.5 has one per part."""
    for key in ("body_parts", "arms"):
        config = config.get(key, config) if isinstance(config, dict) else {}
    if config and "type" not in config:
        config = next(iter(config.values())) if len(config) == 1 else {}
    return config if isinstance(config, dict) else {}


def _scale(arm: dict[str, Any]) -> list[float]:
    """SI units per unit of an OSC_POSE delta action; empty where its limits are not the same both ways."""
    own = {"input_max": 1, "input_min": -1, "output_max": _OUTPUT_MAX, "output_min": [-limit for limit in _OUTPUT_MAX]}
    try:
        limits = {key: np.broadcast_to(np.asarray(arm.get(key, value), float), 6) for key, value in own.items()}
    except (TypeError, ValueError):
        return []
    same = all((limits[f"{name}_max"] == -limits[f"{name}_min"]).all() for name in ("input", "output"))
    return (
        [*(limits["output_max"] / limits["input_max"]).tolist(), 1.0]
        if same and (limits["input_max"] > 0).all()
        else []
    )


def read(path: Path, options: Options) -> Robomimic:
    """Raises ConvertError."""
    return Robomimic(path, options)
