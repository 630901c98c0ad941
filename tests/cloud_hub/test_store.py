"""The hub's database: what was written is there, once, whoever else failed, however the process ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa

from cloud_hub.store import Store
from skerry.errors import StorageError

TABLES = sa.MetaData()
NOTES = sa.Table(
    "notes", TABLES, sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.String, nullable=False)
)


def put(text, number=None):
    values = {"text": text} if number is None else {"text": text, "id": number}
    return lambda c: c.execute(sa.insert(NOTES).values(values)).inserted_primary_key[0]


def texts(store):
    return store.read(lambda c: list(c.scalars(sa.select(NOTES.c.text).order_by(NOTES.c.id))))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "hub.db", TABLES) as store:
        yield store


def test_what_was_written_is_read_and_the_write_returns_what_it_made(store):
    assert store.write(put("one")) == 1
    assert store.write(put("two")) == 2
    assert texts(store) == ["one", "two"]


def test_what_was_written_is_there_after_a_restart(tmp_path):
    for word in ("one", "two"):
        with Store(tmp_path / "hub.db", TABLES) as store:
            store.write(put(word))
    with Store(tmp_path / "hub.db", TABLES) as store:
        assert texts(store) == ["one", "two"]


def test_it_is_as_safe_as_sqlite_can_be(store):
    pragmas = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    found = {name: store.write(lambda c, name=name: c.exec_driver_sql(f"PRAGMA {name}").scalar()) for name in pragmas}
    assert found == pragmas


def test_a_write_that_fails_undoes_itself_alone(store):
    def half(connection):
        put("half")(connection)
        raise KeyError("no such device")

    store.write(put("before"))
    with pytest.raises(KeyError, match="no such device"):
        store.write(half)
    with pytest.raises(sa.exc.IntegrityError):
        store.write(put("twice", 1))
    store.write(put("after"))
    assert texts(store) == ["before", "after"]


def test_writes_that_wait_together_are_committed_together_and_each_for_itself(store):
    entered, go_on = threading.Event(), threading.Event()

    def slow(_connection):
        entered.set()
        go_on.wait(10)

    failed = []

    def write(number):
        try:
            store.write(put(f"{number}", 1 if number % 5 == 0 else 100 + number))  # every fifth has the same id
        except sa.exc.IntegrityError:
            failed.append(number)

    first = threading.Thread(target=store.write, args=(slow,))
    first.start()
    entered.wait(10)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    while store._queue.qsize() < 50:
        time.sleep(0.01)
    before = store.commits
    go_on.set()
    for thread in [first, *threads]:
        thread.join()
    assert store.commits == before + 2
    assert len(failed) == 9
    assert len(texts(store)) == 41


def test_a_reader_cannot_write(store):
    with pytest.raises(StorageError, match="readonly"):
        store.read(put("sneaked in"))
    assert texts(store) == []


def test_a_reader_sees_one_state_and_does_not_hold_the_writer_up(store):
    store.write(put("one"))

    def look(connection):
        before = list(connection.scalars(sa.select(NOTES.c.text)))
        store.write(put("two"))
        return before, list(connection.scalars(sa.select(NOTES.c.text)))

    assert store.read(look) == (["one"], ["one"])
    assert texts(store) == ["one", "two"]


def test_many_readers_and_writers_at_once(store):
    def work(number):
        for turn in range(20):
            store.write(put(f"{number} {turn}"))
            texts(store)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts(store)) == sorted(f"{number} {turn}" for number in range(8) for turn in range(20))


def test_a_closed_store_says_so(tmp_path):
    with Store(tmp_path / "hub.db", TABLES) as store:
        pass
    with pytest.raises(StorageError, match=r"hub\.db is closed; nothing was written"):
        store.write(put("late"))


@pytest.mark.parametrize("spoil", ["garbage", "folder", "nowhere"])
def test_a_file_that_is_no_database_is_refused(tmp_path, spoil):
    path = tmp_path / "hub.db"
    if spoil == "garbage":
        path.write_bytes(b"no database at all" * 500)
    elif spoil == "folder":
        path.mkdir()
    else:
        path = tmp_path / "nowhere" / "hub.db"
    with pytest.raises(StorageError, match=r"hub\.db cannot be opened"), Store(path, TABLES):
        pass


_WRITES_FOR_EVER = """
import sys, threading
from pathlib import Path
import sqlalchemy as sa
from cloud_hub.store import Store
tables = sa.MetaData()
notes = sa.Table("notes", tables, sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.String))
lock = threading.Lock()
def work(name):
    for turn in range(100_000):
        text = f"{name} {turn}"
        store.write(lambda c: c.execute(sa.insert(notes).values(text=text)))
        with lock:
            print(text, flush=True)
with Store(Path(sys.argv[1]), tables) as store:
    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_what_a_killed_hub_had_promised_is_there(tmp_path):
    for turn in range(3):
        path = tmp_path / f"hub{turn}.db"
        with subprocess.Popen([sys.executable, "-c", _WRITES_FOR_EVER, path], stdout=subprocess.PIPE, text=True) as hub:
            promised = [hub.stdout.readline().strip() for _ in range(100 + 50 * turn)]
            os.kill(hub.pid, signal.SIGKILL)
            promised += [line.strip() for line in hub.stdout if line.endswith("\n")]
        with Store(path, TABLES) as store:
            found = texts(store)
            assert len(found) == len(set(found))
            assert set(promised) <= set(found)
            assert store.read(lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"
