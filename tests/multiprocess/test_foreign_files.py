"""A directory to which others write: links, FIFOs, damaged files, and files of other programs."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core import files
from apscheduler_telemetry.export.multiprocess import file_format
from apscheduler_telemetry.export.multiprocess.merge import read_metrics
from apscheduler_telemetry.export.multiprocess.registry import MultiprocessRegistry
from tests.helpers.foreign_files import FOREIGN_FILES, assert_untouched, make_victim
from tests.helpers.http_clients import ask_wsgi
from tests.helpers.multiprocess_files import NOW, Process, Shown, scrape, series, value
from tests.helpers.schedulers import HandDriven

PREFIXES = ["counter_", "histogram_", f"gauge_livemax_{os.getpid()}.db_"]
COUNTER: Any = ("shop_orders", "shop_orders_total", [], [], "Orders.")


def show(process: Process, directory: Path) -> Shown:
    """Read all files as the pages of a handle do, after a write."""
    return series(
        MultiprocessRegistry(
            directory,
            write_current_metrics=process.writer.write,
            on_file_skipped=process.writer.on_file_skipped,
        )
    )


def errors(process: Process) -> int:
    return process.error_reporter.counts()["multiprocess"]


def slot_path(process: Process, prefix: str) -> Path:
    assert process.writer._slot is not None
    return process.writer._slot.file_path(prefix)


def files_of_dead_process(directory: Path) -> list[Path]:
    """Return the files of a process that was killed, in the order of `PREFIXES`."""
    dead = Process(directory)
    dead.job(NOW)
    dead.run(1)
    dead.write()
    paths = [slot_path(dead, prefix.rstrip("_")) for prefix in PREFIXES]
    dead.die()
    return paths


def assert_complete(shown: Shown, runs: int) -> None:
    assert value(shown, "job_runs_total", outcome="success") == runs
    assert value(shown, "job_run_duration_seconds_count") == runs
    assert value(shown, "job_next_run_timestamp_seconds") == NOW


@pytest.mark.parametrize("foreign", FOREIGN_FILES.values(), ids=FOREIGN_FILES)
class TestInThePlaceOfOurFiles:
    """Others put something where a file of ours is, or will be."""

    @pytest.mark.parametrize("number", range(len(PREFIXES)), ids=["counter", "histogram", "gauge"])
    def test_file_of_a_free_slot(
        self,
        directory_without_threads: Path,
        tmp_path: Path,
        foreign: Callable[[Path, Path], None],
        number: int,
    ) -> None:
        """The next process opens none of it, and shows all of its metrics."""
        victim = make_victim(tmp_path / "elsewhere")
        path = files_of_dead_process(directory_without_threads)[number]
        path.unlink()
        foreign(path, victim)
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        shown = show(process, directory_without_threads)
        assert value(shown, "job_next_run_timestamp_seconds") == NOW
        assert (value(shown, "job_runs_total", outcome="success") or 0) >= 1
        assert (value(shown, "job_run_duration_seconds_count") or 0) >= 1
        assert errors(process) > 0 or files.is_missing_or_has_trusted_owner(
            path
        )  # removed like any stale gauge
        assert_untouched(victim)

    @pytest.mark.parametrize("prefix", PREFIXES, ids=["counter", "histogram", "gauge"])
    def test_file_of_a_slot_in_use(
        self,
        directory_without_threads: Path,
        tmp_path: Path,
        foreign: Callable[[Path, Path], None],
        prefix: str,
    ) -> None:
        """The process goes on in another slot, and no count is lost or counted twice."""
        victim = make_victim(tmp_path / "elsewhere")
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        process.write()
        path = slot_path(process, prefix.rstrip("_"))
        path.unlink()
        foreign(path, victim)
        assert_complete(show(process, directory_without_threads), 1)
        process.run(1)
        assert_complete(show(process, directory_without_threads), 2)
        assert_untouched(victim)

    def test_lock_file(
        self, directory_without_threads: Path, tmp_path: Path, foreign: Callable[[Path, Path], None]
    ) -> None:
        """It is not opened, and the next slot is taken."""
        victim = make_victim(tmp_path / "elsewhere")
        first = Process(directory_without_threads)
        first.write()
        (path,) = directory_without_threads.glob("*.lock")
        first.die()
        path.unlink()
        foreign(path, victim)
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        assert_complete(show(process, directory_without_threads), 1)
        assert slot_path(process, "counter").name.endswith(".1.db")
        assert errors(process) == 1
        assert_untouched(victim)

    def test_another_file(
        self,
        directory_without_threads: Path,
        tmp_path: Path,
        foreign: Callable[[Path, Path], None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is left out of each scrape, counted each time and named once."""
        victim = make_victim(tmp_path / "elsewhere")
        path = directory_without_threads / "counter_999.db"
        foreign(path, victim)
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        for count in (1, 2, 3):
            assert_complete(show(process, directory_without_threads), 1)
            assert errors(process) == count
        assert [record.getMessage().split()[0] for record in caplog.records] == [str(path)]
        assert_untouched(victim)


def framed(*entries: tuple[bytes, float]) -> bytes:
    """Return a file with these keys and values, as prometheus_client writes it."""
    content = b""
    for key, number in entries:
        padded = key + b" " * (8 - (len(key) + 4) % 8)
        content += struct.pack(f"i{len(padded)}sdd", len(key), padded, number, 0.0)
    return struct.pack("i4x", len(content) + 8) + content


GOOD = framed((mmap_key(*COUNTER).encode(), 7.0))


def with_key(family: object, name: object, labels: object, description: object) -> bytes:
    text = json.dumps([family, name, labels, description])
    return framed((mmap_key(*COUNTER).encode(), 7.0), (text.encode(), 1.0))


DAMAGED = {
    "short": b"\x08\0",
    "text": b"a text of somebody, and not a file of prometheus_client\n" * 100,
    "cut": GOOD[:-8],
    "cut in a key": GOOD[:40],
    "longer than it is": struct.pack("i4x", 1 << 20) + GOOD[8:],
    "far too long": struct.pack("i4x", (1 << 31) - 1) + GOOD[8:],
    "negative": struct.pack("i4x", -5) + GOOD[8:],
    "length of a key": GOOD[:8] + struct.pack("i", (1 << 31) - 1) + GOOD[12:],
    "negative length of a key": GOOD[:8] + struct.pack("i", -9) + GOOD[12:],
    "ends in an entry": struct.pack("i4x", len(GOOD) - 8) + GOOD[8:] + bytes(100),
    "zeros": struct.pack("i4x", 1 << 16) + bytes(1 << 16),
    "no UTF-8": framed((b"\xff\xfe", 1.0)),
    "no JSON": framed((b"no JSON", 1.0)),
    "another JSON": framed((b'{"a": 1}', 1.0)),
    "deep JSON": framed((b"[" * 200_000, 1.0)),
    "name": with_key(1, "x", {}, "h"),
    "invalid name": with_key("", "", {}, "h"),
    "foreign sample": with_key("shop", "other_total", {}, "h"),
    "foreign sample of the same length": with_key("shop", "spam_total", {}, "h"),
    "foreign suffix": with_key("shop", "shop_orders", {}, "h"),
    "label value": with_key("shop", "shop_total", {"a": 1}, "h"),
    "label name": with_key("shop", "shop_total", {"": "a"}, "h"),
    "labels": with_key("shop", "shop_total", ["a"], "h"),
    "help": with_key("shop", "shop_total", {}, None),
    "surrogate in a name": with_key("shop\ud800", "shop\ud800_total", {}, "h"),
    "surrogate in a label name": with_key("shop", "shop_total", {"a\ud800": "x"}, "h"),
    "surrogate in a label value": with_key("shop", "shop_total", {"a": "\udfff"}, "h"),
    "surrogate in a help text": with_key("shop", "shop_total", {}, "h\ud800"),
}


class TestDamagedFiles:
    """Files that no process of the application has written as they are."""

    @pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
    def test_damaged_file_is_left_out_counted_and_named(
        self, directory_without_threads: Path, content: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing of it is shown, and everything else is, in every format."""
        path = directory_without_threads / "counter_999.db"
        path.write_bytes(content)
        (directory_without_threads / "counter_1.db").write_bytes(GOOD)
        telemetry = instrument(HandDriven(), registry=CollectorRegistry())
        try:
            telemetry._snapshot_writer.start()  # type: ignore[union-attr]
            for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
                answer = ask_wsgi(telemetry.wsgi_app, "/metrics", headers={"accept": accept})
                assert answer.status == 200
                assert "\nshop_orders_total 7.0\n" in answer.text
                assert "\napscheduler_scheduler_up" in answer.text
            counts = telemetry._exported_scheduler.error_reporter.counts()
        finally:
            telemetry.uninstrument()
        assert counts["multiprocess"] == 2
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith(f"{path} ")

    @pytest.mark.parametrize("name", ["length of a key", "far too long", "longer than it is"])
    def test_length_that_a_file_claims_takes_no_memory(self, tmp_path: Path, name: str) -> None:
        """No memory is set aside for what a damaged file says that it contains."""
        path = tmp_path / "counter_999.db"
        path.write_bytes(DAMAGED[name])
        tracemalloc.start()
        try:
            with pytest.raises(file_format.DamagedFileError):
                list(file_format.read_entries(path))
            assert tracemalloc.get_traced_memory()[1] < 4 * file_format.MAX_KEY_BYTES
        finally:
            tracemalloc.stop()

    def test_empty_file_is_no_error(self, directory_without_threads: Path) -> None:
        """prometheus_client creates each file empty, and others may read it at that moment."""
        (directory_without_threads / "counter_999.db").touch()
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        assert_complete(show(process, directory_without_threads), 1)
        assert errors(process) == 0

    def test_histogram_with_a_bound_that_is_no_number(
        self, directory_without_threads: Path
    ) -> None:
        """Values that cannot be combined are left out, and the other metrics are shown."""
        key = json.dumps(["shop", "shop_bucket", {"le": "wide"}, "h"]).encode()
        (directory_without_threads / "histogram_9.db").write_bytes(framed((key, 1.0)))
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        assert_complete(show(process, directory_without_threads), 1)
        assert errors(process) == 1

    @pytest.mark.parametrize(
        "name", ["jobs.db", "info_1.db", "gauge.db", "gauge_x_1.db", "counter.db", ".db_x.db"]
    )
    def test_file_of_another_program(self, directory_without_threads: Path, name: str) -> None:
        """A database that somebody keeps there is left out."""
        path = directory_without_threads / name
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE jobs (id)")
        connection.close()
        content = path.read_bytes()
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        assert_complete(show(process, directory_without_threads), 1)
        assert errors(process) == 1
        assert path.read_bytes() == content

    @pytest.mark.parametrize("name", ["info_1.db", "gauge_1.db", "gauge_x_1.db", "counter.db"])
    def test_metrics_in_a_file_of_an_unknown_name(
        self, directory_without_threads: Path, name: str
    ) -> None:
        """Metrics of which the name of their file does not say how to combine them are left out."""
        (directory_without_threads / name).write_bytes(GOOD)
        process = Process(directory_without_threads)
        assert "shop_orders_total" not in str(show(process, directory_without_threads))
        assert errors(process) == 1
        (directory_without_threads / "counter_1.db").write_bytes(GOOD)
        assert "shop_orders_total" in str(show(process, directory_without_threads))

    def test_lock_file_with_a_foreign_text_is_used(self, directory_without_threads: Path) -> None:
        """The slot is used, and counts from the start of its scheduler."""
        files_of_dead_process(directory_without_threads)
        (path,) = directory_without_threads.glob("*.lock")
        for text in (b"no time" * 100, b"nan", b"-inf", b"\xff"):
            path.write_bytes(text)
            process = Process(directory_without_threads)
            process.job(NOW)
            shown = show(process, directory_without_threads)
            assert value(shown, "scheduler_start_timestamp_seconds") == NOW
            assert errors(process) == 0
            process.die()

    def test_process_without_a_scheduler_counts_for_all(
        self, directory_without_threads: Path
    ) -> None:
        """What any worker has left out is counted in one file, which all workers show."""
        (directory_without_threads / "counter_999.db").write_bytes(b"x")
        workers = [instrument(HandDriven(), registry=CollectorRegistry()) for _ in range(2)]
        try:
            for worker in (*workers, *workers):
                ask_wsgi(worker.wsgi_app, "/metrics")
            page = ask_wsgi(workers[0].wsgi_app, "/metrics").text
        finally:
            for worker in workers:
                worker.uninstrument()
        line = 'apscheduler_telemetry_errors_total{component="multiprocess",scheduler="default"}'
        assert f"\n{line} 3.0\n" in page  # the last one of each worker is not written yet
        assert len(list(directory_without_threads.glob("counter_apscheduler-*"))) == 1


class TestPermissions:
    """Who may read and write the files."""

    @pytest.mark.parametrize("umask", [0o000, 0o022])
    def test_only_the_owner_may_use_the_files(
        self, directory_without_threads: Path, umask: int
    ) -> None:
        """All files are for their owner only, whatever the umask, also those from before."""
        previous = os.umask(umask)
        try:
            for path in files_of_dead_process(directory_without_threads):
                if path.exists():
                    path.chmod(0o666)
            for path in directory_without_threads.glob("*.lock"):
                path.chmod(0o666)
            Process(directory_without_threads).write()
        finally:
            os.umask(previous)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in directory_without_threads.iterdir()}
        assert modes == {files.OWNER_ONLY_MODE}

    def test_hard_link_in_the_place_of_a_lock_file(
        self, directory_without_threads: Path, tmp_path: Path
    ) -> None:
        """The file elsewhere is not written to."""
        victim = make_victim(tmp_path / "elsewhere")
        files_of_dead_process(directory_without_threads)
        (path,) = directory_without_threads.glob("*.lock")
        path.unlink()
        path.hardlink_to(victim)
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        shown = show(process, directory_without_threads)
        assert value(shown, "job_runs_total", outcome="success") == 2
        assert errors(process) == 1
        assert_untouched(victim)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_files_of_a_third_user_are_not_used(self, directory_without_threads: Path) -> None:
        """A slot with a file of a user who is neither this one nor the directory's is not used."""
        path = files_of_dead_process(directory_without_threads)[0]
        os.chown(path, 65534, -1)
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        show(process, directory_without_threads)
        assert slot_path(process, "counter").name.endswith(".1.db")
        assert errors(process) == 1


class TestFormat:
    """The values are those that prometheus_client reads and writes."""

    def test_files_are_combined_as_prometheus_client_does(
        self, directory_without_threads: Path
    ) -> None:
        """The application's own metrics of all kinds, in several processes, have equal values."""
        modes = ["all", "livesum", "max", "mostrecent"]
        kinds = ["counter", "summary", *(f"gauge_{mode}" for mode in modes)]
        for pid in (1, 2):
            for kind in kinds:
                file = MmapedDict(str(directory_without_threads / f"{kind}_{pid}.db"))  # type: ignore[no-untyped-call]
                key = mmap_key(f"shop_{kind}", f"shop_{kind}", ["a"], ["\u00e9\n"], "h")
                file.write_value(key, pid * 1.5, 10.0 - pid)  # type: ignore[no-untyped-call]
                file.close()  # type: ignore[no-untyped-call]
        for name in ("main", "other"):
            process = Process(directory_without_threads, name)
            process.job(NOW)
            process.run(1)
            process.write()
        expected = scrape(directory_without_threads)
        assert show(process, directory_without_threads) == expected
        assert len(expected) > 100
        assert errors(process) == 0

    def test_file_that_its_process_removes_meanwhile(
        self, directory_without_threads: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that is gone when it is opened is no error."""
        path = directory_without_threads / "counter_1.db"
        path.write_bytes(GOOD)

        def remove_and_open(path: Path) -> int:
            path.unlink()
            return files.open_regular_file(path)

        monkeypatch.setattr(file_format, "open_regular_file", remove_and_open)
        skipped: list[str] = []
        assert read_metrics(directory_without_threads, lambda *what: skipped.extend(what)) == []
        assert skipped == []
