"""The lock of a workdir that lies in a bucket, which knows neither POSIX's locks nor touches.

The object `.lock` names its holder and counts: it is written anew every few seconds, so whoever watches it change knows that
the holder lives. Google's and Amazon's stores make an object only where there is none (`only_new`), which makes taking
the lock one step; where a store does not know that, both write, and the one whose words are not there has not got it.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from etils import epath

from vit_jax import places, workdir_lock
from vit_jax.contracts import UserError
from vit_jax.workdir_lock import LOCK, Lock


def lock_of(workdir: epath.Path) -> Lock:
    """The kind of lock that fits where `workdir` lies, not yet taken."""
    return BucketLock(workdir) if places.in_bucket(workdir) else Lock(workdir)


class BucketLock(Lock):
    """The right to write into a workdir in a bucket."""

    def __init__(self, workdir: epath.Path):
        super().__init__(workdir)
        self.workdir, self.path = workdir, workdir / LOCK
        self._who: dict[str, Any] | None = None

    def check(self) -> None:
        if self._who is None:
            return
        with places.reached(self.workdir):
            holder = self._now()
        if not holder:
            raise UserError(
                f"Expected the workdir {self.workdir} to stay where it is, its {LOCK} was removed while the run went on: "
                "start again."
            )
        if holder.get("token") != self._who["token"]:
            raise UserError(workdir_lock.lost(self.workdir, holder))

    def close(self) -> None:
        if self._who is None:
            return
        self._ended.set()
        self._beating.join()
        with contextlib.suppress(Exception):  # the run is over; who comes next finds a holder that is dead
            if self._now().get("token") == self._who["token"]:
                self.path.unlink()
        self._who = None

    def _refusal(self) -> str | None:
        try:
            with places.reached(self.workdir):
                return self._taken()
        except UserError as error:
            return str(error)

    def _taken(self) -> str | None:
        """Why the lock is not to be had, or None with it taken."""
        if holder := self._now():
            if self._lives(holder):
                return workdir_lock.taken(self.workdir, holder)
            workdir_lock.dead(self.workdir, holder)
            self.path.unlink(missing_ok=True)
        me = workdir_lock.who() | {"beat": 0}
        try:
            places.put(self.path, json.dumps(me).encode(), only_new=True)
        except FileExistsError:
            return workdir_lock.taken(self.workdir, self._now())
        if (holder := self._now()).get("token") != me["token"]:
            return workdir_lock.taken(self.workdir, holder)
        self._who = me
        self._beating.start()
        return None

    def _lives(self, holder: dict[str, Any]) -> bool:
        """Whether the system knows the holder, or its object changes while we look."""
        if (here := workdir_lock.lives_here(holder)) is not None:
            return here
        workdir_lock.waiting(self.workdir, holder)
        deadline = time.monotonic() + workdir_lock.PATIENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(2, workdir_lock.PATIENCE_SECONDS / 10))
            if (now := self._now()) != holder:
                return bool(now)
        return False

    def _now(self) -> dict[str, Any]:
        """What the object says; empty where there is none."""
        try:
            return workdir_lock.parsed(self.path.read_bytes()) or {"host": "an unknown host"}
        except FileNotFoundError:
            return {}

    def _beat(self) -> None:
        while not self._ended.wait(workdir_lock.BEAT_SECONDS):
            assert self._who is not None
            with contextlib.suppress(Exception):  # the next one may get through
                if self._now().get("token") == self._who["token"]:
                    self._who["beat"] += 1
                    places.put(self.path, json.dumps(self._who).encode())
