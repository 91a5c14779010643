"""A sample of what may befall a spool's bytes, and the oracle held against one that loses unsaid."""

from __future__ import annotations

from pathlib import Path

from campaign import corruption


def test_a_damaged_spool_starts_and_says_what_it_lost(tmp_path: Path) -> None:
    verdict = corruption.Verdict()
    corruption.run(tmp_path, 6_117, 2, 3, verdict)
    assert verdict.problems == []
    assert verdict.damages > 30
    assert verdict.lost > 0
    assert verdict.anew > 0


def test_bytes_that_once_kept_an_agent_from_starting_or_cost_it_everything(tmp_path: Path) -> None:
    sound, verdict = corruption.made(tmp_path / "small", 12, 20), corruption.Verdict()
    # A version in the head, names of tables and columns, the head of the state's page.
    for at in (18, 3735, 3852, 4095, 12289, 12293):
        for what, damaged, _ in tuple(corruption.at_every_byte(sound, len(sound.data), at))[:2]:
            corruption.judge(sound, what, damaged, 1, tmp_path / "damaged", verdict)
    *_, (what, damaged, cost) = corruption.at_every_byte(sound, len(sound.data), 40_000)
    corruption.judge(sound, what, damaged, cost, tmp_path / "damaged", verdict)
    assert verdict.problems == []
    assert verdict.lost == cost


def test_a_record_that_is_gone_unsaid_is_found_out(tmp_path: Path) -> None:
    sound, verdict = corruption.made(tmp_path / "small", 12, 20), corruption.Verdict()
    sound.frames[99] = sound.frames[1]
    corruption.judge(sound, "nothing", sound.data, 0, tmp_path / "damaged", verdict)
    assert verdict.problems == [
        "nothing: 1 batches lost unsaid, 99 first",
        "nothing: 1 records lost, and 0 were hit",
    ]
