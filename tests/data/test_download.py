import hashlib
import http.server
import shutil
import threading
from types import SimpleNamespace

import pytest

from cnn_jax.data import download as module
from cnn_jax.data.archives import Official
from cnn_jax.data.download import download

DATA = hashlib.sha256(b"archive").digest() * 40_000


class Server(http.server.BaseHTTPRequestHandler):
    """Gives DATA, from where it is asked to; `asked` are the ranges, `drop_after` breaks the connection off."""

    asked, drop_after, knows_ranges = [], None, True

    def do_GET(self):
        self.asked.append(self.headers["Range"])
        start = int(self.headers["Range"].split("=")[1].split("-")[0]) if self.knows_ranges else 0
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        self.wfile.write(DATA[start : start + (type(self).drop_after or len(DATA))])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def url():
    Server.asked, Server.drop_after, Server.knows_ranges = [], None, True
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def official(url, path="/set.tar", digest=None):
    digest = digest or hashlib.sha256(DATA).hexdigest()
    return Official("set.tar", len(DATA), f"sha256:{digest}", url + path)


def test_fetches_once(url, tmp_path):
    path = download(official(url), tmp_path / "downloads")
    assert path == tmp_path / "downloads" / "set.tar" and path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == ["set.tar"]
    assert download(official(url), tmp_path / "downloads") == path
    assert Server.asked == ["bytes=0-"]


def test_goes_on_where_it_was_broken_off(url, tmp_path):
    Server.drop_after = 500_000
    with pytest.raises(
        OSError, match=r"gave 500,000 of 1,280,000 bytes; the same command goes on|cannot fetch .*goes on"
    ):
        download(official(url), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["set.tar.partial"]
    Server.drop_after = None
    assert download(official(url), tmp_path).read_bytes() == DATA
    have = int(Server.asked[1].removeprefix("bytes=").rstrip("-"))
    assert 0 < have <= 500_000


def test_a_server_that_knows_no_ranges_sends_all_of_it_anew(url, tmp_path):
    (tmp_path / "set.tar.partial").write_bytes(b"x" * 1000)
    Server.knows_ranges = False
    assert download(official(url), tmp_path).read_bytes() == DATA


def test_a_partial_file_that_is_too_long_is_begun_anew(url, tmp_path):
    (tmp_path / "set.tar.partial").write_bytes(b"x" * (len(DATA) + 1))
    assert download(official(url), tmp_path).read_bytes() == DATA


def test_can_be_stopped_between_pieces(url, tmp_path):
    def poll():
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)

    calls = []
    with pytest.raises(KeyboardInterrupt):
        download(official(url), tmp_path, poll)
    assert (tmp_path / "set.tar.partial").stat().st_size == 2 * module.CHUNK
    assert download(official(url), tmp_path).read_bytes() == DATA


def test_another_checksum_is_refused_and_removed(url, tmp_path):
    with pytest.raises(ValueError, match=r"gave other contents than published .*--source=PATH"):
        download(official(url, digest="0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_and_no_network_are_told(url, tmp_path):
    with pytest.raises(OSError, match=r"cannot fetch http.*/missing .*Not Found.*--source=PATH") as caught:
        download(official(url, "/missing"), tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match=r"cannot fetch http://127.0.0.1:1/set.tar .*refused"):
        download(official("http://127.0.0.1:1"), tmp_path)


def test_no_room_is_told_before_anything_is_fetched(url, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"set.tar needs 1,280,000 bytes, 1,000 are free"):
        download(official(url), tmp_path)
    assert Server.asked == []


def test_a_directory_that_cannot_be_written_is_named(url, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/downloads cannot be written .*name another --dir"):
        download(official(url), tmp_path / "file" / "downloads")
