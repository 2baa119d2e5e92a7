"""Weights & Biases: config, curves, summary, tables and artifacts of each run."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Optional, cast

from idp import config
from idp.config import option
from idp.errors import UserError
from idp.records import metrics
from idp.records.schema import Record
from idp.store import write_json
from idp.tracking import Followed

Mode = Literal["online", "offline", "disabled", "shared"]

log = logging.getLogger(__name__)

START_SECONDS = 30.0
# What is not sent by then stays in the run's folder, and the next attempt sends its curves again.
FINISH_SECONDS = 120.0
LOGGED = "logged.json"
LONGEST_TAG = 64
LONGEST_NAME = 128  # of a run, a group or a project
NOT_IN_A_PROJECT = "/\\#?%:"
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
LEAST_BYTES = 2**20
SERVICE = "WANDB_SERVICE"


@dataclass
class Wandb(config.Tracker):
    title: ClassVar[str] = "W&B"

    mode: str = option("auto: online when logged in, else offline", choices=("auto", "offline", "online", "disabled"))
    project: str = option("W&B project")
    entity: Optional[str] = option("W&B user or team")
    group: Optional[str] = option("W&B group; null: the study, or model and compressor where there is none")
    artifacts: str = option(
        "the record and the repair as W&B artifacts; reference: names and hashes of files that stay where they are;"
        " upload: the files themselves",
        choices=("none", "reference", "upload"),
    )
    system_metrics: bool = option("also log the load of CPU, GPU, memory, disk and network")

    def check(self) -> None:
        """Refuses what W&B would refuse only when the run starts.

        Raises:
            UserError: a project or an entity that W&B cannot have, also one of WANDB_ENTITY.
        """
        if self.mode == "disabled":
            return
        around = os.environ.get("WANDB_ENTITY", "").strip() if self.entity is None else ""
        if around and os.environ.get("WANDB_MODE") != "disabled":
            _check_entity("WANDB_ENTITY", around)
        if self.entity is not None:
            _check_entity("tracker.entity", self.entity)
        for name, value in {"project": self.project, "entity": self.entity}.items():
            if value is None:
                continue
            bad = sorted({letter for letter in value if letter in NOT_IN_A_PROJECT or not letter.isprintable()})
            before, slash, after = value.partition("/")
            if name == "project" and slash and before.strip() and after.strip() and bad == ["/"] and "/" not in after:
                raise UserError(f"tracker.project={value}: say tracker.entity={before} tracker.project={after}")
            if bad or not value.strip():
                raise UserError(f"tracker.{name}={value}: W&B needs a name without any of {NOT_IN_A_PROJECT}")
            if len(value) > LONGEST_NAME:
                raise UserError(f"tracker.{name}={value}: W&B takes {LONGEST_NAME} characters at most")

    def start(self, run: Followed) -> WandbTracker | None:
        if self.mode == "disabled":
            return None
        tracker = WandbTracker(self, run)
        return None if tracker.run.disabled else tracker  # by W&B's own settings: nothing arrives anywhere


class WandbTracker:
    """One W&B run, whose id comes from the config's hash, so that a repeated or continued run joins its first.

    Every attempt at a run has a folder of its own below `<folder>/wandb`; `wandb sync` makes one run of them. Points of
    a curve that an earlier attempt is known to have delivered are not logged again.

    Args:
        options: mode, project, entity, study, group, tags, artifacts and system metrics.
        run: the run; W&B writes below its folder.
    """

    def __init__(self, options: Wandb, run: Followed):
        _forget_others_service()
        tags_around = _clean_environment()
        import wandb

        self.options, self.folder, labels = options, run.folder / "wandb", run.labels
        self.folder.mkdir(exist_ok=True)
        self._check_room()
        start = functools.partial(
            wandb.init,
            project=self.options.project,
            entity=self.options.entity,
            group=shortened(
                self.options.group or self.options.study or f"{labels['model']}-{labels['compressor']}", LONGEST_NAME
            ),
            job_type=shortened(labels["recovery"], LONGEST_TAG),
            name=shortened(run.name, LONGEST_NAME),
            id=run.run_id,
            resume="allow",
            tags=tags_of((*labels.values(), *self.options.tags, *tags_around)),
            config={**run.config, "labels": dict(labels)},
            dir=str(self.folder.parent),
            reinit="create_new",  # a run that was not ended, earlier in this process, is no reason to join it
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=START_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
                x_disable_stats=not self.options.system_metrics,
            ),
        )
        mode: Mode = "online"
        try:
            mode = mode_of(options.mode)
            self.run = start(mode=mode)
        except Exception as error:
            if mode != "online":
                raise
            log.warning("W&B: %s; the run is logged offline: send it later with `wandb sync`", _one_line(error))
            wandb.teardown(exit_code=1)  # W&B's own process still holds the id of the run that it failed to start
            self.run = start(mode="offline")
        self.logged: dict[str, int] = {}
        if self.run.disabled:
            return
        for part in ("train/*", "heldout/*"):
            self.run.define_metric(part, step_metric="training_step")
        self.logged = self._delivered().get(self._place, {})

    def log(self, row: dict[str, float]) -> None:
        """One training step or held-out evaluation: `train/<part>/loss`, `heldout/<part>/loss` and so on.

        A point that was logged before, in this attempt or one that ended in good order, is left out.
        """
        values, curve = {}, ""
        for key, value in row.items():
            if key == "step":
                continue
            part, _, metric = key.rpartition("/")
            kind, metric = ("heldout", "loss") if metric == "heldout_loss" else ("train", metric)
            curve = "/".join(filter(None, (kind, part)))
            values[f"{curve}/{metric}"] = value
        if row["step"] > self.logged.get(curve, -1):
            self.logged[curve] = int(row["step"])
            self.run.log({"training_step": row["step"], **values})

    def summary(self, record: Record, place: Path, repair: Path | None) -> None:
        """Summary, tables and artifacts from the record.

        Args:
            record: the record.
            place: its file.
            repair: the repair's folder, if the model was repaired.
        """
        import wandb

        self.run.summary.update(metrics.summary(record))
        tables = metrics.tables(record)
        self.run.log({name: wandb.Table(columns=columns, data=rows) for name, (columns, rows) in tables.items()})
        if self.options.artifacts != "none":
            self._log_artifacts(place, repair)

    def finish(self) -> None:
        """Ends the run as finished."""
        self._end(0)

    def fail(self) -> None:
        """Ends the run as failed; what was logged so far is kept."""
        self._end(1)

    def stop(self) -> None:
        """Ends this process's part of a run that is to be continued; W&B shows the run as preempted until then.

        On return everything logged is whole in the run's folder and, online, with the server. Where the server does not
        answer within `FINISH_SECONDS` there is one warning, and the points are logged again by the next attempt. Call
        it while an exception unwinds, not inside a signal handler: W&B's own locks may be held there.
        """
        self.run.mark_preempting()
        self._end(1)

    def _end(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
        self._check_room()
        write_json(self.folder / LOGGED, {**self._delivered(), self._place: self.logged})

    def _log_artifacts(self, record: Path, repair: Path | None) -> None:
        """The record, and the repair's folder, as artifacts that name their files or hold them."""
        import wandb

        for kind, place in {"record": record, "repair": repair}.items():
            if place is None:
                continue
            artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind)
            if self.options.artifacts == "reference":
                artifact.add_reference(place.resolve().as_uri())
            elif place.is_dir():
                artifact.add_dir(str(place))
            else:
                artifact.add_file(str(place))
            self.run.log_artifact(artifact)

    @property
    def _place(self) -> str:
        return f"{self.options.entity or ''}/{self.options.project}/{self.run.id}"

    def _delivered(self) -> dict[str, dict[str, int]]:
        """By the run's place in W&B, the last step of each curve that attempts have delivered to it."""
        try:
            return json.loads((self.folder / LOGGED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _check_room(self) -> None:
        """W&B's own process writes the files, and says nothing here when the disk is full."""
        if shutil.disk_usage(self.folder).free < LEAST_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))


def _check_entity(name: str, value: str) -> None:
    """Refuses what is no user or team of W&B: its address has the name in it."""
    bad = sorted({letter for letter in value if letter in NOT_IN_A_PROJECT or letter.isspace()})
    if bad or not value or not value.isprintable():
        raise UserError(
            f"{name}={value}: W&B needs the name of a user or team, without spaces and any of {NOT_IN_A_PROJECT};"
            " leave it out for your own"
        )


def _forget_others_service() -> None:
    """Removes what would have this process log through the `wandb-core` of the one that started it.

    SLURM hands the whole environment to a job, which may well outlive that process and its `wandb-core`, or run on
    another node; W&B then does not start at all.
    """
    if os.environ.get(SERVICE, "").split("-")[1:2] != [str(os.getpid())]:  # 3-<process>-unix-<socket>
        os.environ.pop(SERVICE, None)


def shortened(name: str, longest: int) -> str:
    """A name of at most `longest` characters; of a longer one the beginning and a hash, so that it stays its own."""
    if len(name) <= longest:
        return name
    return f"{name[: longest - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def tags_of(words: Iterable[str]) -> list[str]:
    """The tags of a run as W&B takes them: none empty, none twice, none longer than 64 characters."""
    return list(dict.fromkeys(shortened(word.strip(), LONGEST_TAG) for word in words if word.strip()))


def _clean_environment() -> list[str]:
    """Mends W&B's variables that would keep it from starting; the tags of WANDB_TAGS.

    W&B checks them all, also those that the options of a run replace.
    """
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE"):  # options say these
        os.environ.pop(name, None)
    if not os.environ.get("WANDB_ENTITY", "?").strip():
        del os.environ["WANDB_ENTITY"]
    tags = tags_of(os.environ.pop("WANDB_TAGS", "").split(","))
    if tags:
        os.environ["WANDB_TAGS"] = ",".join(tags)  # for the next run of this process
    if (mode := os.environ.get("WANDB_MODE")) is not None and mode not in MODES:
        if mode.strip():
            log.warning("WANDB_MODE=%s: W&B has %s; the run is logged offline", mode, ", ".join(MODES[:4]))
            os.environ["WANDB_MODE"] = "offline"
        else:
            del os.environ["WANDB_MODE"]
    return tags


def mode_of(mode: str) -> Mode:
    """The mode for `wandb.init`: `auto` is what WANDB_MODE says, else online when logged in, else offline."""
    if mode != "auto":
        return cast(Mode, mode)
    if os.environ.get("WANDB_MODE"):
        return cast(Mode, os.environ["WANDB_MODE"])
    import wandb

    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
