"""Content-addressed artifacts: whatever has been computed once is found again, whole, or made anew.

A product's key is the SHA-256 of everything that made it. It is written in a folder beside its place and renamed
when complete, so a reader never sees half of one. A lease keeps two jobs, on whichever nodes, from doing the same work;
no result depends on it: a maker that lost its lease finds its folder gone, and takes the other's product.

    <root>/<stage>/<key>/               a finished product, with manifest.json
    <root>/<stage>/<key>.<lease>.part/  one being made; what is under `checkpoint/` survives a kill
    <root>/<stage>/<key>.damaged-N/     one that failed its hashes, set aside
    <root>/locks/<stage>-<key>.lock     the lease of its maker
    <root>/verified/<stage>-<key>.json  when its large files were hashed: see `idp.store.verification`

A product's folder has the time at which it was last asked for. `python -m idp.store` lists, verifies and removes.

What is finished is read without writing anything, also from a disk that is read-only. Several users may share a store
whose folders their group may write in: what one makes has the permissions that his umask and the store's folder say.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from idp.errors import UserError, disk_trouble
from idp.memory import device_peaks, peak_bytes, start_peak
from idp.store import stopwatch
from idp.store.lease import lease_at, wait_for
from idp.store.modes import as_umask_says, seems_writable, why_not_writable
from idp.store.unfinished import CHECKPOINT, adopted, leave_checkpoint
from idp.store.verification import MANIFEST, Stamps, hash_file

if TYPE_CHECKING:
    from filelock import SoftFileLease

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "lm-eval", "peft", "datasets")


@dataclass(frozen=True)
class Product:
    """A finished artifact: where it is, the key that names it, and whether this run had to make it."""

    path: Path
    key: str
    reused: bool
    manifest: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Wall time that making it took, whenever that was; without that of its prerequisites."""
        return self.manifest["seconds"]

    @property
    def prerequisites(self) -> dict[str, float]:
        """Seconds of the products that were needed to make it and these, by `<stage>/<key>`: what is beneath a repair.

        The models that earlier stages of the run made are none of them. Products of earlier versions name none.
        """
        return self.manifest.get("prerequisites", {})

    @property
    def total_seconds(self) -> float:
        """Wall time of making it where none of its prerequisites is there yet."""
        return sum(self.taken.values())

    @property
    def taken(self) -> dict[str, float]:
        """Seconds by `<stage>/<key>`, of itself and of its prerequisites."""
        return self.prerequisites | {f"{self.manifest['stage']}/{self.key}": self.seconds}

    @property
    def config(self) -> dict[str, Any]:
        """What decided it beside what it was made from, as its `Identity` had it."""
        return self.manifest["config"]

    def read(self, name: str) -> Any:
        """The JSON file `name` of this product."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def summary(self) -> dict[str, Any]:
        """What the record says of a stage: its key, whether it was reused, and the seconds that making it took."""
        seconds = {"seconds": round(self.seconds, 3), "total_seconds": round(self.total_seconds, 3)}
        return {"key": self.key, "reused": self.reused, **seconds}


@dataclass(frozen=True)
class Identity:
    """All that makes a product what it is, known before it is made: its key is their hash.

    Args:
        stage: the stage's name: the first folder under the store's root.
        parent: the key of the product that this one is made from.
        config: everything else that decides the result, as JSON values: options, seed, hashes of local inputs.
        version: the stage's version number, raised when its code changes what it yields.
        label: what is said to the user, such as "gptq4"; no part of the key.
    """

    stage: str
    parent: str | None
    config: dict[str, Any]
    version: int
    label: str = ""

    @functools.cached_property
    def key(self) -> str:
        """The name of the product's folder."""
        return digest(self.values())

    def values(self) -> dict[str, Any]:
        """What the key is the hash of, as the manifest has it."""
        return {"stage": self.stage, "parent": self.parent, "config": self.config, "version": self.version}


def peaks(products: Iterable[Product]) -> dict[str, Any]:
    """The most memory that making any of the products took, whenever that was.

    `peak_memory_bytes` is the process's, `device_peak_bytes` that of each accelerator, such as `cuda:0`; the latter is
    left out where none was used.
    """
    made = [product.manifest for product in products]
    devices: dict[str, int] = {}
    for manifest in made:
        for device, peak in manifest.get("device_peak_bytes", {}).items():
            devices[device] = max(peak, devices.get(device, 0))
    host = max((manifest["peak_memory_bytes"] for manifest in made), default=0)
    return {"peak_memory_bytes": host} | ({"device_peak_bytes": devices} if devices else {})


def canonical(value: Any) -> str:
    """JSON with one spelling per value, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """The values with their hash, as they will be read from JSON again."""
    values = _finite(values)
    return {**values, "digest": digest(values)}


def unsealed(values: dict[str, Any]) -> dict[str, Any]:
    """What was sealed.

    Raises:
        ValueError: it was changed since.
    """
    values = dict(values)
    if values.pop("digest", None) != digest(values):
        raise ValueError("it does not match its hash")
    return values


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a JSON object")
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it.

    A number that JSON does not have (infinity, NaN) is written as null.
    """
    value = _finite(value)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class Store:
    """The folder of artifacts that all runs share."""

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()

    def check_writable(self, stages: Iterable[str] = ()) -> None:
        """Refuses a store in which no products of these stages can be made, before anything is computed.

        Raises:
            UserError: where nothing can be written, and why.
        """
        for folder in (self.root / "locks", *(self.root / stage for stage in dict.fromkeys(stages))):
            if (reason := why_not_writable(folder)) is not None:
                raise UserError(
                    f"store={self.root}: cannot write there ({reason}). Choose another folder with store=...; of one"
                    " that several users share, every folder has to be writable for their group"
                )

    def all_writable(self) -> bool:
        """Whether each of its folders seems to be writable: a quick look, which creates nothing."""
        try:
            stages = [path for path in self.root.iterdir() if path.is_dir()] if self.root.exists() else []
        except OSError:
            return False
        return all(map(seems_writable, (self.root, *stages)))

    def get_or_make(
        self,
        stage: str,
        *,
        parent: str | None,
        config: dict[str, Any],
        version: int,
        make: Callable[[Path], None],
        label: str = "",
    ) -> Product:
        """`obtain` of the `Identity` that the other arguments are the fields of."""
        return self.obtain(Identity(stage, parent, config, version, label), make)

    def obtain(self, identity: Identity, make: Callable[[Path], None], after: Iterable[Product] = ()) -> Product:
        """The product of an identity, made by `make(folder)` if no run has made it yet.

        Args:
            identity: what it is.
            make: writes the product's files into the folder that it is given. What it writes under
                `folder/checkpoint` is there again when a killed `make` is called anew, and is dropped at the end.
                Products that it obtains are prerequisites, whose seconds are not its own.
            after: further prerequisites, obtained before.

        Returns:
            the product, its files verified against the hashes in its manifest; weights may be known by their times, and
            are hashed when they are opened.
        """
        with stopwatch.obtaining() as taken:
            product = self._obtained(identity, make, after)
            taken |= product.taken
        return product

    def _obtained(self, identity: Identity, make: Callable[[Path], None], after: Iterable[Product]) -> Product:
        stage, key, label = identity.stage, identity.key, identity.label
        place = self.root / stage / key
        held = lease_at(self.root / "locks" / f"{stage}-{key}.lock")
        prepared = False
        while True:
            manifest = self._whole(place)
            if manifest is not None:
                _touch(place)
                log.info("%s %s: reused from %s", stage, label, place)
                return Product(place, key, True, manifest)
            if not prepared:
                self.check_writable([stage])
                Path(held.lock_file).parent.mkdir(parents=True, exist_ok=True)
                prepared = True
            if not _acquired(held, f"{stage} {label}"):
                continue  # all that waited now read at once, and not one after the other under the lease
            try:
                if place.exists() and not self._set_aside(place):
                    continue
                assert held.token is not None  # of a lease that is held
                part = adopted(place, held.token)
                try:
                    return Product(place, key, False, self._make(part, place, identity, make, after))
                except Exception:
                    if part.exists():
                        leave_checkpoint(part)
                        raise
                    log.warning("%s %s: this run stood still, and another one took its work over", stage, label)
            finally:
                held.release()

    def finished(self, identity: Identity) -> Product | None:
        """The product of an identity, if it is there and whole; nothing is made, moved or marked as used."""
        place = self.root / identity.stage / identity.key
        manifest = self._whole(place)
        return Product(place, identity.key, True, manifest) if manifest is not None else None

    def get(self, stage: str, key: str) -> Product:
        """The finished product that a record names, verified; nothing is made or moved.

        Raises:
            UserError: it is not here, or damaged.
        """
        place = self.root / stage / key
        damage = damage_of(place) if place.exists() else "it is not there"
        if damage is not None:
            raise UserError(f"{place}: {damage}; run the record's own command again with this store")
        _touch(place)
        return Product(place, key, True, json.loads((place / MANIFEST).read_text(encoding="utf-8")))

    def _make(
        self, part: Path, place: Path, identity: Identity, make: Callable[[Path], None], after: Iterable[Product]
    ) -> dict[str, Any]:
        try:
            part.mkdir(parents=True, exist_ok=True)
            start_peak()
            watch = stopwatch.Stopwatch(part, part / CHECKPOINT)
            for product in after:
                watch.needs(product.taken)
            with watch.running():
                make(part)
            seconds = watch.seconds
            watch.file.unlink(missing_ok=True)
            shutil.rmtree(part / CHECKPOINT, ignore_errors=True)
            as_umask_says(part)
            manifest = {
                **identity.values(),
                "key": identity.key,
                "label": identity.label,
                "files": {str(file.relative_to(part)): hash_file(file) for file in _files(part)},
                "seconds": seconds,
                "prerequisites": watch.prerequisites,
                "peak_memory_bytes": peak_bytes(),
                **({"device_peak_bytes": devices} if (devices := device_peaks()) else {}),
                "libraries": versions(),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            manifest = sealed(manifest)
            write_json(part / MANIFEST, manifest)
            os.rename(part, place)
        except Exception as error:
            reason = disk_trouble(error)
            if reason is None:
                raise
            raise UserError(
                f"{identity.stage}: {reason} ({getattr(error, 'filename', None) or part}). Free some space or choose"
                " another folder with store=..., then run the same command again: finished stages are kept"
            ) from error
        return manifest

    def _whole(self, place: Path) -> dict[str, Any] | None:
        """The manifest of a whole product; None where there is none, or a damaged one."""
        if not place.exists() or damage_of(place) is not None:
            return None
        return json.loads((place / MANIFEST).read_text(encoding="utf-8"))

    def _set_aside(self, place: Path) -> bool:
        """Moves a damaged product away; False where it is whole after all."""
        damage = damage_of(place)
        if damage is None:
            return False
        aside = next(
            candidate
            for number in range(10**6)
            if not (candidate := place.with_name(f"{place.name}.damaged-{number}")).exists()
        )
        os.rename(place, aside)
        log.warning("%s: damaged (%s); set aside as %s and made anew", place, damage, aside.name)
        return True


def damage_of(place: Path, by_hash: bool = False) -> str | None:
    """What is wrong with a product, or None.

    Args:
        place: its folder.
        by_hash: whether every file is hashed, also one of weights that is known by its times.
    """
    try:
        manifest = unsealed(json.loads((place / MANIFEST).read_text(encoding="utf-8")))
        if manifest["key"] != place.name:
            return f"{MANIFEST} is another product's"
        found = {str(file.relative_to(place)) for file in _files(place)} - {MANIFEST}
        if odd := found ^ set(manifest["files"]):
            return f"{sorted(odd)[0]} is missing or does not belong"
        return Stamps(place).damage(manifest["files"], by_hash)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"


def versions() -> dict[str, str]:
    """The installed versions of the libraries that results depend on."""
    found = {name: _version(name) for name in LIBRARIES}
    return {name: version for name, version in found.items() if version is not None}


@functools.cache  # each is read from a file, and every product names them
def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _touch(place: Path) -> None:
    """Gives a product's folder the time of its last use."""
    with contextlib.suppress(OSError):
        os.utime(place)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _acquired(held: SoftFileLease, what: str) -> bool:
    """Takes a lease; False where another run had it, once that run is done with it or is found to be dead."""
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.warning("%s: another run is making it; waiting (%s)", what, held.lock_file)
        wait_for(held)
        held.release()
        return False
    return True
