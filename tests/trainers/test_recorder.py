"""Rank 0's recorder and the silent twin that the other ranks have."""

from trainers.recorder import FirstRankRecorder, Recorder


def test_the_twin_is_silent_where_the_recorder_of_rank_0_acts() -> None:
    """A method that rank 0 does not override would be lost without an error."""
    public = {name for name in vars(Recorder) if not name.startswith("_")} - {"claim"}
    assert public <= vars(FirstRankRecorder).keys()


def test_the_twin_has_nothing_to_broadcast_and_asks_nobody_to_stop() -> None:
    twin = Recorder()
    assert twin.claim is None
    assert twin.newest_checkpoint() is None
    assert not twin.stop_requested
    assert not twin.collapsed_before(10)
