"""TensorBoard's event files, in the workdir's folder `tensorboard`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

from vit_jax.loggers.logger import Begun, Logger


class TensorBoard(Logger):
    """A file of scalars, written at once. tensorboardX's own writer does it in a thread of its own, which dies unheard when
    the disk is full, after which the run waits for it for ever.
    """

    package, install = "tensorboardX", "vit_jax"

    def __init__(self, begun: Begun):
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        # It imports PyTorch where that is installed, for seconds, to log its tensors.
        hidden = "torch" not in sys.modules
        if hidden:
            sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            from tensorboardX import event_file_writer, proto, summary
        finally:
            if hidden:
                del sys.modules["torch"]
        self._scalar, self._event = summary.scalar, proto.event_pb2.Event
        folder = begun.workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._file = event_file_writer.EventsWriter(str(folder / "events"))
        if begun.step:  # forget what an interrupted run wrote after it
            start = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
            self._file.write_event(self._event(wall_time=time.time(), step=begun.step + 1, session_log=start))

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            scalar = self._scalar(f"{kind}/{name}", float(value))
            self._file.write_event(self._event(wall_time=time.time(), step=step, summary=scalar))
        self._file.flush()

    def close(self) -> None:
        self._file.close()
