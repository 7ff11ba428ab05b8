"""What the demo and the benches start, they take along, whatever ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PLAY = """
from xorepd_lab.demo.stage import Stage
with Stage() as stage:
    stage.start_lab("--topology", "small")
    print(stage.directory, stage.lab.pid, flush=True)
    stage.lab.wait()
"""


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_clears_the_stage_and_a_second_one_does_not_disturb_that(
    ending: signal.Signals,
) -> None:
    with subprocess.Popen([sys.executable, "-c", PLAY], stdout=subprocess.PIPE, text=True) as play:
        assert play.stdout is not None
        directory, lab = play.stdout.readline().split()
        assert Path(directory).is_dir()
        for _ in range(2):
            play.send_signal(ending)
        assert play.wait() == 128 + ending

    assert not Path("/proc", lab).exists()
    assert not Path(directory).exists()
