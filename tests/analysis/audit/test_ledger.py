"""The ledger: whatever is done to its lines, or to a record, is found; two audits at once both get a line."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_geo.analysis.audit.ledger import Receipt, append, line_of, parse_line
from lightning_geo.analysis.audit.record_hash import record_hash
from lightning_geo.analysis.audit.verification import Verification, verify
from lightning_geo.storage.history import load_history
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.file_lock import locked
from support.records import make_record, write


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Receipt]]:
    path = tmp_path_factory.mktemp("ledger") / "audits.jsonl"
    receipts = [append(path, {"result": result, "é": [1.5, None]}) for result in ("passed", "breached") * 2]
    return path.read_bytes(), receipts


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_edit_is_found(chain: tuple[bytes, list[Receipt]], data: st.DataObject) -> None:
    content, receipts = chain
    path = Path(receipts[0].path)
    lines = content.splitlines(keepends=True)
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(
        st.sampled_from(["flip", "cut", "insert", "value", "space", "remove", "swap", "repeat", "end"])
    )
    row, other = data.draw(st.permutations(range(len(lines))))[:2]
    expected = receipts[-1].hash
    if kind == "flip":
        new = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
        changed = content[:place] + bytes([new]) + content[place + 1 :]
    elif kind == "cut":
        changed = content[:place] + content[place + data.draw(st.integers(1, 9)) :]
    elif kind == "insert":
        changed = content[:place] + data.draw(st.binary(min_size=1, max_size=4)) + content[place:]
    elif kind == "value":  # well-formed, with the hash as it was
        changed = content.replace(b'"passed"', b'"waived"', data.draw(st.integers(1, 2)))
    elif kind == "space":
        changed = content.replace(b",", b", ", data.draw(st.integers(1, 9)))
    elif kind == "remove":
        changed = b"".join(lines[:row] + lines[row + 1 :])
    elif kind == "swap":
        lines[row], lines[other] = lines[other], lines[row]
        changed = b"".join(lines)
    elif kind == "repeat":
        changed = b"".join([*lines[:row], lines[other], *lines[row:]])
    else:
        changed = b"".join(lines[: data.draw(st.integers(0, len(lines) - 1))])
    path.write_bytes(changed)
    assert verify(path, expected).problems
    if kind == "remove" and row < len(lines) - 1:  # the chain alone shows it
        assert verify(path).problems
    path.write_bytes(content)
    assert verify(path, expected)[1:3] == (expected, ())


def test_what_the_chain_cannot_show_the_hash_shows(tmp_path: Path) -> None:
    path = tmp_path / "audits.jsonl"
    first, second = (append(path, {"result": result}) for result in ("passed", "breached"))
    whole = path.read_bytes()
    path.write_bytes(whole.splitlines(keepends=True)[0])  # the breach is cut off
    assert verify(path).problems == ()
    assert "lines were removed from the end" in verify(path, second.hash).problems[0]
    # written anew by someone who knows how
    path.write_bytes(line_of({**parse_line(whole.splitlines()[0]), "result": "waived"}) + b"\n")
    assert verify(path).problems == ()
    assert verify(path, first.hash).problems
    path.write_bytes(whole)
    assert "1 were added since" in verify(path, first.hash).notes[0]
    assert [first.number, second.number] == [1, 2]


def test_a_torn_line_is_found_and_nothing_is_glued_to_it(tmp_path: Path) -> None:
    path = tmp_path / "audits.jsonl"
    append(path, {"result": "passed"})
    whole = path.read_bytes()
    for torn in (whole[:-1], whole + whole[:40], whole + b"\n", b"x\n"):
        path.write_bytes(torn)
        assert verify(path).problems
        with pytest.raises(RunError, match="last line is damaged"):
            append(path, {"result": "passed"})
        assert path.read_bytes() == torn
    path.write_bytes(b"")
    assert verify(path).problems == ("The ledger is empty.",)
    for missing in (tmp_path, tmp_path / "none" / "audits.jsonl", "s3://bucket/audits.jsonl"):
        with pytest.raises(RunError):
            append(missing, {})
        with pytest.raises(RunError):
            verify(missing)


def test_audits_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audits.jsonl"
    start = threading.Barrier(4)

    def several() -> None:
        start.wait()
        for _ in range(10):
            append(path, {"text": "x" * 100_000})

    threads = [threading.Thread(target=several) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = verify(path)
    assert (result.lines, result.problems) == (40, ())


def test_a_line_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "audits.jsonl"
    append(path, {"text": "whole"})
    line = line_of({"number": 2, "previous": append(tmp_path / "same.jsonl", {"text": "whole"}).hash})
    results: list[Verification] = []
    reader = threading.Thread(target=lambda: results.append(verify(path)))
    with path.open("ab", buffering=0) as file, locked(file):
        file.write(line[:20])
        reader.start()
        reader.join(0.2)
        assert not results
        file.write(line[20:] + b"\n")
    reader.join(60)
    assert [(result.lines, result.problems) for result in results] == [(2, ())]


def test_a_record_that_changed_is_found(tmp_path: Path) -> None:
    run = write(tmp_path / "run", 0, 50)
    ledger = tmp_path / "audits.jsonl"

    def identity() -> dict[str, object]:
        history = load_history(run)
        return {
            "path": str(run),
            "monitor": history.name,
            "record": record_hash(history),
            "samples": len(history),
        }

    append(ledger, {"run": identity(), "release": None})
    assert verify(ledger)[2:] == ((), (), 1)
    # more files, and another session's samples behind: what was audited is as it was
    write(run, 100)
    result = verify(ledger)
    assert (result.problems, result.records) == ((), 1)
    assert "went on after line 1: 1 samples more, none changed" in result.notes[0]
    append(ledger, {"run": identity(), "release": identity()})
    assert verify(ledger).records == 2
    write(run, 50, seed=1)  # replaces the second sample
    problems = verify(ledger).problems
    assert [problem[:22] for problem in problems] == ["The record of line 1 c", "The record of line 2 c"]
    assert verify(ledger, records=False).problems == ()
    for file in run.iterdir():
        file.unlink()
    assert all("cannot be checked" in problem for problem in verify(ledger).problems)


def test_the_hash_is_of_every_bit_and_all_metadata(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, 0, 50) for name in "ab")
    assert record_hash(load_history(one)) == record_hash(load_history(two))
    hashes = {record_hash(load_history(one))}
    changes = (
        {"seed": 1}, {"wall_time": 1.5}, {"probe_fingerprint": "beef"}, {"coverage": {"seen": 2}},
        {"looked_for": ["departure"]}, {"metrics": ["concentration"]}, {"layers": 3}, {"stacks": ["decoder"]},
    )  # fmt: skip
    for i, changed in enumerate(changes):
        hashes.add(record_hash(load_history(write(tmp_path / str(i), 0, 50, **changed))))
    hashes.add(record_hash(load_history(write(tmp_path / "name", 0, 50, name="other"))))
    history = load_history(one)
    history.record(0).stacks["encoder"]["entropy"] = (
        make_record(0, metrics=["entropy"]).stacks["encoder"]["entropy"].astype("f8")
    )
    hashes.add(record_hash(history))
    assert len(hashes) == 11
