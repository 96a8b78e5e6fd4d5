"""Which worker gets which items, whatever order they finish and die in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from helpers.workers import make_items
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.batch.dispatch import Dispatcher


def test_the_longest_item_of_a_block_comes_first(tmp_path: Path) -> None:
    dispatcher = Dispatcher(iter(make_items(tmp_path, 40)), 40, 1)
    assert len(dispatcher.next_block(0, 2)) == 2
    lengths = [item.chars for item in dispatcher.next_block(0, 2)]
    assert len(lengths) == 8 and lengths == sorted(lengths, reverse=True)


def test_a_worker_with_enough_gets_no_more(tmp_path: Path) -> None:
    dispatcher = Dispatcher(iter(make_items(tmp_path, 100)), 100, 2)
    assert [len(dispatcher.next_block(0, 4)) for _ in range(3)] == [4, 16, 0]
    assert [len(dispatcher.next_block(1, 4)) for _ in range(3)] == [4, 16, 0]


def test_the_last_blocks_are_small(tmp_path: Path) -> None:
    dispatcher = Dispatcher(iter(make_items(tmp_path, 8)), 8, 2)
    assert [len(dispatcher.next_block(worker, 4)) for worker in (0, 1, 0, 1)] == [2, 2, 1, 1]


def test_an_item_that_killed_two_workers_runs_alone_after_all_others(tmp_path: Path) -> None:
    dispatcher = Dispatcher(iter(make_items(tmp_path, 3)), 3, 1)
    for _ in range(2):
        while dispatcher.next_block(0, 1):
            pass
        assert dispatcher.lose(0, 1) == []
    (other,) = dispatcher.next_block(0, 1)
    assert dispatcher.finish(0, other.id)
    (suspect,) = dispatcher.next_block(0, 4)
    assert not dispatcher.next_block(0, 4)
    assert dispatcher.lose(0, 4) == [suspect]
    (innocent,) = dispatcher.next_block(0, 4)
    assert dispatcher.finish(0, innocent.id) and dispatcher.is_done


def test_a_lost_machine_blames_no_item(tmp_path: Path) -> None:
    dispatcher = Dispatcher(iter(make_items(tmp_path, 1)), 1, 1)
    for _ in range(9):
        assert len(dispatcher.next_block(0, 1)) == 1
        assert dispatcher.lose(0, 1, blamed=False) == []


def test_a_late_result_of_another_worker_counts_for_nothing(tmp_path: Path) -> None:
    dispatcher = Dispatcher(iter(make_items(tmp_path, 1)), 1, 2)
    (item,) = dispatcher.next_block(0, 1)
    dispatcher.lose(0, 1)
    assert dispatcher.next_block(1, 1) == [item]
    assert dispatcher.finish(0, item.id) is None
    assert dispatcher.finish(1, item.id) == item and dispatcher.is_done


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_item_is_finished_once(data: st.DataObject) -> None:
    """Whatever workers do: finish in any order, die at any time, return what they have not started."""
    count, workers = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 4))
    dispatcher = Dispatcher(iter(make_items(Path(), count)), count, workers)
    mine: dict[int, list[str]] = {worker: [] for worker in range(workers)}
    ended: Counter[str] = Counter()
    for _ in range(400):
        for worker, ids in mine.items():
            ids += [item.id for item in dispatcher.next_block(worker, 2)]
        if dispatcher.is_done:
            break
        worker = data.draw(st.sampled_from([each for each, ids in mine.items() if ids]))
        action = data.draw(st.sampled_from(["finish"] * 6 + ["die", "lost machine", "return"]))
        if action == "finish":
            name = mine[worker].pop(data.draw(st.integers(0, len(mine[worker]) - 1)))
            ended[name] += dispatcher.finish(worker, name) is not None
        elif action == "return":
            dispatcher.give_back(worker, mine[worker])
            mine[worker].clear()
        else:
            ended.update(item.id for item in dispatcher.lose(worker, 2, action == "die"))
            mine[worker].clear()
    else:
        return  # too many deaths drawn
    assert ended == Counter({f"i{number}": 1 for number in range(count)})
