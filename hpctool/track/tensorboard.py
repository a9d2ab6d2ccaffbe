"""TensorBoard event files, written with TensorBoard's own records and messages: no torch, no TensorFlow.

One file per attempt, and a session start at the first step of every attempt, the first one too: only then do all
of TensorBoard's readers cut away what a killed attempt had logged beyond the step where the next one began.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from hpctool import config
from hpctool.rundir import RunDir
from hpctool.track.keys import changed_values


class EventWriter:
    """The event file of one attempt of a run. Raises OSError."""

    def __init__(self, rundir: RunDir, first_step: int) -> None:
        rundir.tensorboard.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in order of name, and clocks of two hosts may disagree: the
        # attempt's number stands where others put the time.
        path = rundir.tensorboard / f"events.out.tfevents.{rundir.attempt:010d}.hpctool"
        self._records = RecordWriter(path.open("ab"))
        if os.path.getsize(path) == 0:
            self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=time.time(), step=first_step, session_log=start))
        self._write_hparams(metadata.SESSION_START_INFO_TAG, session_start_info=_session_start(rundir))

    def log(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """Add the scalars of one step."""
        scalars = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(event_pb2.Event(wall_time=wall_time, step=step, summary=summary_pb2.Summary(value=scalars)))

    def flush(self) -> None:
        """Hand what was logged to the operating system."""
        self._records.flush()

    def close(self, *, completed: bool) -> None:
        """End the file. Readers keep the first session end they meet, so only a run that is done gets one."""
        if completed:
            end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
            self._write_hparams(metadata.SESSION_END_INFO_TAG, session_end_info=end)
        self._records.close()

    def _write_hparams(self, tag: str, **info: Any) -> None:
        described = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**info))
        value = summary_pb2.Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)
        self._write(event_pb2.Event(wall_time=time.time(), summary=summary_pb2.Summary(value=[value])))

    def _write(self, event: event_pb2.Event) -> None:
        self._records.write(event.SerializeToString())


def _session_start(rundir: RunDir) -> plugin_data_pb2.SessionStartInfo:
    """What the HParams page shows of this run: the keys that were varied or typed. None has no value there."""
    flat = config.flatten(config.to_plain(config.load(rundir.config_yaml)))
    info = plugin_data_pb2.SessionStartInfo(group_name=rundir.id, start_time_secs=time.time())
    for key, value in changed_values(rundir.record(), flat).items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[key].number_value = value
        elif value is not None:
            info.hparams[key].string_value = str(value)
    return info
