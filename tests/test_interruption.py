"""Real signals, sent by this process to itself."""

import os
import signal

import pytest

from cnn_jax.interruption import Interrupted, Interruption

BOTH = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def before():
    """Handlers that note what they get, in place before an Interruption opens; what was there comes back."""
    noted = []
    kept = {signum: signal.signal(signum, lambda signum, frame: noted.append(signum)) for signum in BOTH}
    yield noted
    for signum, handler in kept.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def handlers() -> list:
    return [signal.getsignal(signum) for signum in BOTH]


@pytest.mark.parametrize("signum", BOTH)
def test_a_signal_is_remembered_until_poll_which_raises_once(before, signum):
    with Interruption() as interruption:
        interruption.poll()
        send(signum)
        assert before == []
        with pytest.raises(Interrupted, match=f"^interrupted by {signum.name}$") as caught:
            interruption.poll()
        assert caught.value.signum == signum
        interruption.poll()
    assert before == []


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
@pytest.mark.parametrize("is_polled", [False, True])
def test_the_second_signal_acts_at_once_as_it_used_to(before, first, second, is_polled):
    with Interruption() as interruption:
        send(first)
        if is_polled:
            with pytest.raises(Interrupted):
                interruption.poll()
        send(second)
        assert before == [second]
        if not is_polled:
            with pytest.raises(Interrupted) as caught:
                interruption.poll()
            assert caught.value.signum == first


def test_the_second_ctrl_c_is_a_keyboard_interrupt():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with Interruption():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_are_restored(before):
    there = handlers()
    with Interruption():
        assert all(handler not in there for handler in handlers())
    assert handlers() == there
    send(signal.SIGTERM)
    assert before == [signal.SIGTERM]


def test_handlers_are_restored_after_an_error_and_after_a_signal(before):
    there = handlers()
    with pytest.raises(ZeroDivisionError), Interruption():
        raise ZeroDivisionError
    assert handlers() == there
    with pytest.raises(Interrupted), Interruption() as interruption:
        send(signal.SIGTERM)
        interruption.poll()
    assert handlers() == there


def test_one_inside_another_hands_back_in_turn(before):
    with Interruption() as outer:
        with Interruption() as inner:
            send(signal.SIGTERM)
            outer.poll()
            with pytest.raises(Interrupted):
                inner.poll()
        send(signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            outer.poll()
        assert caught.value.signum == signal.SIGINT
    assert before == []


def test_among_several_processes_the_poll_is_the_one_that_all_stop_at(before, monkeypatch):
    polls = []

    def reached(number):  # jax's: it says so at a poll that no process has passed
        polls.append(number)
        return number == 3

    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", reached)
    with Interruption(num_processes=2) as interruption:
        interruption.poll()
        send(signal.SIGINT)
        assert before == [signal.SIGTERM]  # Ctrl-C became what jax tells the others of
        interruption.poll()
        with pytest.raises(Interrupted, match=r"^interrupted by SIGINT$"):
            interruption.poll()
    assert polls == [1, 2, 3]
    with Interruption(num_processes=2) as interruption, pytest.raises(Interrupted, match=r"^interrupted by SIGTERM$"):
        monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", lambda number: True)
        interruption.poll()  # another process had the signal
