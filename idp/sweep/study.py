"""Optuna's study of a search: where it is kept, whose it is, and what it is told of a trial.

It is kept in a journal, to which lines are only ever added: it needs no locks that shared file systems lack, and a kill
in the middle of a line costs that line. A search holds a lease on its study, so what is under way there when another
one opens it was left by a search that died.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.config import one_line
from idp.errors import UserError

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from optuna import Study, Trial
    from optuna.storages import BaseStorage

log = logging.getLogger(__name__)
FILE, UNNAMED = "study.log", "search"
MADE, BEGUN, REASON = "search", "begun", "failed"  # what is written beside Optuna's own into a study, and into a trial


@contextmanager
def opened(
    storage: str | None, name: str | None, direction: str, made: dict[str, Any], folder: Path
) -> Iterator[Study]:
    """The study of a search, held by this process alone.

    Its attribute BEGUN says how many trials were finished when the search began that is not done yet.

    Args:
        storage: a file, or the URL of a database; None: a file in `folder`.
        name: the study's; a study with a name goes on when its search is given again, one without begins anew.
        direction: minimize or maximize.
        made: what makes trials comparable, by what a message calls it.
        folder: the sweep's.

    Raises:
        UserError: the storage cannot be used, or its study of that name has other trials than `made` describes.
    """
    from filelock import Timeout

    from idp.store import digest
    from idp.store.lease import lease_at, wait_for

    place = storage or str(folder / FILE)
    file = None if "://" in place else Path(place).expanduser()
    beside = folder / FILE if file is None else file
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"hydra.sweeper.storage={place}: {error.strerror}") from error
    held = lease_at(beside.with_name(f"{beside.name}.{digest(name)[:8]}.lease"))
    try:
        held.acquire(blocking=False)
    except Timeout:
        log.info(f"another search is at work on this study; waiting for it: {place}")
        wait_for(held)
    try:
        yield _study(_storage(place, file), place, name, direction, made)
    finally:
        held.release()


def tell(study: Study, trial: Trial, done: JobReturn) -> str | None:
    """Tells a study how a trial ended; the reason, in a line, if it failed."""
    from optuna.trial import TrialState

    try:
        value = done.return_value  # raises what the run raised
        if value is None:
            raise UserError("it returned no held-out loss: nothing is trained")
        if not math.isfinite(value):
            raise UserError(f"its held-out loss is {value}")
    except Exception as error:
        reason = f"trial {trial.number} failed: {one_line(error)}"
        trial.set_user_attr(REASON, reason)
        study.tell(trial, state=TrialState.FAIL)
        log.warning(reason)
        return reason
    study.tell(trial, float(value))
    return None


def _storage(place: str, file: Path | None) -> BaseStorage:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from optuna.storages.journal._file import get_lock_file

    try:
        if file is None:
            return RDBStorage(place)
        backend = JournalFileBackend(str(file))
        with get_lock_file(JournalFileSymlinkLock(str(file))):
            _cut_torn_line(file)
        storage = JournalStorage(backend)  # reads it
        storage.get_all_studies()
        return storage
    except Exception as error:
        raise UserError(f"hydra.sweeper.storage={place}: it is no study that can be used: {one_line(error)}") from error


def _cut_torn_line(file: Path) -> None:
    """Cuts off what a kill, or a full disk, left of a line: the next one would be written right behind it."""
    with open(file, "r+b") as journal:
        content = journal.read()
        if content.startswith(b'{"op_code":') and not content.endswith(b"\n"):
            journal.truncate(content.rfind(b"\n") + 1)


def _study(storage: BaseStorage, place: str, name: str | None, direction: str, made: dict[str, Any]) -> Study:
    import optuna

    known = {study.study_name for study in optuna.get_all_study_summaries(storage)}
    if name is None and UNNAMED in known:
        earlier = optuna.load_study(study_name=UNNAMED, storage=storage)
        if earlier.user_attrs.get(BEGUN) is None or earlier.user_attrs.get(MADE) != made:
            optuna.delete_study(study_name=UNNAMED, storage=storage)
    study = optuna.create_study(study_name=name or UNNAMED, storage=storage, direction=direction, load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    if not trials:  # also where a search was killed before its first one
        study.set_user_attr(MADE, made)
    found = {**study.user_attrs.get(MADE, {}), "direction": study.direction.name.lower()}
    for what, wanted in {**made, "direction": direction}.items():
        if found.get(what) != wanted:
            raise UserError(
                f"the study {name} in {place} has trials with another {what}, which do not compare: "
                "give this search another hydra.sweeper.study_name"
            )
    if study.user_attrs.get(BEGUN) is None:
        study.set_user_attr(BEGUN, sum(trial.state.is_finished() for trial in trials))
    else:
        log.info(f"an interrupted search goes on: {len(trials)} trials in {place}")
    return study
