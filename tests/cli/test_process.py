import os
import signal
import subprocess
import sys

import pytest

from lacache.cli.process import interruptible


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_ctrl_c_raises_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as stopped:
        assert not stopped()
        ctrl_c()
        assert stopped()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_ctrl_c_is_raised() -> None:
    with interruptible() as stopped:
        ctrl_c()
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as stopped:
            ctrl_c()
            assert not stopped()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_works_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_imports_of_a_new_process_are_frozen_and_those_of_others_are_not() -> None:
    code = (
        "import gc, sys\n"
        "from lacache.cli.process import heavy_imports\n"
        "for name in ('json', 'tomllib'):\n"
        "    before = gc.get_freeze_count()\n"
        "    with heavy_imports():\n"
        "        __import__(name)\n"
        "        print(gc.isenabled())\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > before)\n"
        "    sys.modules['torch'] = sys\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "True", "True", "False"]
