"""Images that come from elsewhere, and new ones: whole and the right ones, fetched once, or not there at all."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import http.server
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from backends.base import BackendRejected, TransientBackendError
from backends.xen.fetch import Progress
from backends.xen.images import Image, ImageSettings
from backends.xen.repository import Repository

DATA = os.urandom(3 * 1024 * 1024)
SUM = hashlib.sha256(DATA).hexdigest()
URL = "https://images.example.org/debian.raw"

Answer = Callable[[httpx.Request], httpx.Response]


class Body(httpx.AsyncByteStream):
    """A body in two parts; between them it may break or wait."""

    def __init__(self, data: bytes = DATA, error: Exception | None = None, wait: asyncio.Event | None = None) -> None:
        self.data = data
        self.error = error
        self.wait = wait

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.data[: 1024 * 1024]
        if self.wait is not None:
            await self.wait.wait()
        if self.error is not None:
            raise self.error
        yield self.data[1024 * 1024 :]


def whole(data: bytes = DATA, length: int | None = None) -> Answer:
    """An answer with that body."""
    headers = {} if length is None else {"Content-Length": str(length)}
    return lambda request: httpx.Response(200, stream=Body(data), headers=headers)


class Server:
    """A web server that is asked in memory; `answer` says what it answers."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer or whole()
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        return self.answer(request)


async def no_volumes(place: str, path: Path, progress: Progress) -> str:
    raise AssertionError(place)


def repository(tmp_path: Path, server: Server, limit: int = 20, **catalog: Image) -> Repository:
    catalog = catalog or {"debian": Image(name="debian", url=URL, sha256=SUM)}
    (tmp_path / "images").mkdir(exist_ok=True)
    settings = ImageSettings(directory="images", cache="cache", cache_limit=limit, catalog=catalog)
    return Repository(settings, tmp_path, "tag", no_volumes, httpx.MockTransport(server))


def cached(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "cache")) if (tmp_path / "cache").exists() else []


async def read(images: Repository, name: str = "debian") -> bytes:
    async with images.local(name) as local:
        return local.path.read_bytes()


async def test_an_image_is_fetched_once_for_all_who_ask(tmp_path: Path) -> None:
    server = Server()
    images = repository(tmp_path, server)
    assert await asyncio.gather(*(read(images) for _ in range(3))) == [DATA] * 3
    assert await read(images) == DATA
    assert server.asked == [URL]
    assert cached(tmp_path) == [SUM]
    assert await read(repository(tmp_path, server)) == DATA, "another life finds it"
    assert server.asked == [URL]


async def test_a_redirect_is_followed(tmp_path: Path) -> None:
    server = Server(
        lambda request: (
            whole()(request)
            if request.url.path == "/elsewhere"
            else httpx.Response(302, headers={"Location": "/elsewhere"})
        )
    )
    assert await read(repository(tmp_path, server)) == DATA


def _status(code: int) -> Answer:
    return lambda request: httpx.Response(code)


def _raising(error: Exception) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (_status(404), BackendRejected, "HTTP status 404 Not Found: correct the image's url"),
        (_status(403), BackendRejected, "HTTP status 403 Forbidden"),
        (_status(429), TransientBackendError, "HTTP status 429"),
        (_status(503), TransientBackendError, "HTTP status 503 Service Unavailable"),
        (_raising(httpx.ConnectError("refused")), TransientBackendError, "debian.raw: refused"),
        (_raising(httpx.ReadTimeout("")), TransientBackendError, "debian.raw: ReadTimeout"),
        (
            lambda request: httpx.Response(302, headers={"Location": str(request.url)}),
            BackendRejected,
            "maximum allowed redirects",
        ),
        (
            whole(DATA[:-1]),
            BackendRejected,
            f"has the SHA-256 {hashlib.sha256(DATA[:-1]).hexdigest()}, and {SUM} is expected",
        ),
        (
            whole(length=len(DATA) + 1),
            TransientBackendError,
            f"ended after {len(DATA)} of {len(DATA) + 1} bytes",
        ),
        (
            lambda request: httpx.Response(200, stream=Body(error=httpx.RemoteProtocolError("peer closed"))),
            TransientBackendError,
            "peer closed",
        ),
        (
            whole(bytes(21 * 1024 * 1024)),
            BackendRejected,
            f"has {21 * 1024 * 1024} bytes, and at most {20 * 1024 * 1024} are expected",
        ),
    ],
)
async def test_what_goes_wrong_leaves_nothing_and_is_tried_anew(
    tmp_path: Path, answer: Answer, kind: type[Exception], message: str
) -> None:
    server = Server(answer)
    images = repository(tmp_path, server)
    with pytest.raises(kind) as failed:
        await read(images)
    assert message in str(failed.value)
    assert cached(tmp_path) == []
    assert images.progress == {}
    server.answer = whole()
    assert await read(images) == DATA


async def test_a_cancelled_fetch_leaves_nothing_and_shows_its_progress_before(tmp_path: Path) -> None:
    go = asyncio.Event()
    server = Server(
        lambda request: httpx.Response(200, stream=Body(wait=go), headers={"Content-Length": str(len(DATA))})
    )
    images = repository(tmp_path, server)
    reading = asyncio.create_task(read(images))
    async with asyncio.timeout(10):
        while not images.progress:
            await asyncio.sleep(0.001)
    assert images.progress == {"debian": (1024 * 1024, len(DATA))}
    assert cached(tmp_path) == [f".{SUM}.tag.part"]
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await images.close()
    assert cached(tmp_path) == []


async def test_what_an_earlier_life_left_is_removed(tmp_path: Path) -> None:
    images = repository(tmp_path, Server())
    (tmp_path / "cache").mkdir()
    ours = [tmp_path / "cache" / f".{SUM}.tag.part", tmp_path / "images" / ".mine.tag.part"]
    others = tmp_path / "images" / ".mine.another.part"
    for path in (*ours, others):
        path.write_bytes(b"half")
    await images.open()
    assert [path.exists() for path in (*ours, others)] == [False, False, True]


async def test_the_copy_used_longest_ago_makes_room_and_one_in_use_does_not(tmp_path: Path) -> None:
    contents = {name: bytes([number]) * 2 * 1024 * 1024 for number, name in enumerate("abc")}
    server = Server(lambda request: whole(contents[request.url.path[1:]])(request))
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    images = repository(
        tmp_path,
        server,
        limit=4,
        **{name: Image(name=name, url=f"https://x.example/{name}", sha256=sums[name], size=2 << 20) for name in "abc"},
    )
    await read(images, "a")
    await read(images, "b")
    for name, age in (("a", 10), ("b", 20)):
        os.utime(tmp_path / "cache" / sums[name], (1e9 - age, 1e9 - age))
    await read(images, "a")  # used again
    await read(images, "c")
    assert cached(tmp_path) == sorted([sums["a"], sums["c"]])
    os.utime(tmp_path / "cache" / sums["a"], (1, 1))
    async with images.local("a") as held:
        os.utime(held.path, (1, 1))
        await read(images, "b")
        assert held.path.read_bytes() == contents["a"]
    assert cached(tmp_path) == sorted([sums["a"], sums["b"]])


async def test_an_image_too_large_for_the_cache_is_not_fetched(tmp_path: Path) -> None:
    server = Server()
    huge = Image(name="debian", url=URL, sha256=SUM, size=21 << 20)
    with pytest.raises(BackendRejected, match=r"images\.cache_limit allows"):
        await read(repository(tmp_path, server, debian=huge))
    assert server.asked == []


async def test_a_full_disk_here_is_told_and_may_be_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = repository(tmp_path, Server())
    opened = Path.open

    def full(path: Path, mode: str = "r") -> object:
        if mode == "xb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(TransientBackendError, match="No space left on device: make room there"):
        await read(images)


async def test_the_sum_of_a_file_is_its_sum_of_today(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(DATA)
    images = repository(tmp_path, Server(), debian=Image(name="debian", file="a.img"))
    async with images.local("debian") as local:
        assert local.sha256 == SUM
    path.write_bytes(DATA[::-1] + bytes(512))
    async with images.local("debian") as local:
        assert local.sha256 == hashlib.sha256(DATA[::-1] + bytes(512)).hexdigest()


async def test_what_is_broken_is_listed_as_not_ready_with_the_reason(tmp_path: Path) -> None:
    images = repository(tmp_path, Server())
    for name, entry in {"gone": 'file = "gone.img"', "bad": "file ="}.items():
        (tmp_path / "images" / f"{name}.toml").write_text(entry)
    seen, problems = await images.images()
    assert [(image.name, image.ready) for image in seen] == [("debian", True), ("gone", False)]
    assert len(problems) == 2
    with pytest.raises(BackendRejected, match=r"there is no image bad; .*bad\.toml cannot be read"):
        await images.find("bad")


async def save(images: Repository, name: str, source: str, data: bytes = DATA, error: Exception | None = None) -> None:
    async with images.saving(name, source, Image(name=name)) as file:
        assert file is not None
        file.path.write_bytes(data)
        file.sha256 = hashlib.sha256(data).hexdigest()
        if error is not None:
            raise error


async def test_a_save_that_fails_leaves_the_name_free(tmp_path: Path) -> None:
    images = repository(tmp_path, Server())
    with pytest.raises(TransientBackendError, match="the host is gone"):
        await save(images, "mine", "node/0", error=TransientBackendError("the host is gone"))
    assert os.listdir(tmp_path / "images") == []
    await save(images, "mine", "node/1")
    assert await read(images, "mine") == DATA
    assert sorted(os.listdir(tmp_path / "images")) == [f"mine-{SUM[:12]}.raw", "mine.toml"]


@pytest.mark.parametrize("theirs", [DATA, DATA[::-1]])
async def test_who_saved_under_the_name_meanwhile_keeps_their_image(tmp_path: Path, theirs: bytes) -> None:
    images = repository(tmp_path, Server())
    settings = ImageSettings(directory="images", cache="cache")
    other = Repository(settings, tmp_path, "another", no_volumes)

    async def both() -> None:
        async with images.saving("mine", "node/0", Image(name="mine")) as file:
            assert file is not None
            file.path.write_bytes(DATA)
            file.sha256 = SUM
            await save(other, "mine", "node/1", theirs)

    with pytest.raises(BackendRejected, match="there is an image mine by now"):
        await both()
    assert await read(images, "mine") == theirs
    assert len(os.listdir(tmp_path / "images")) == 2


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers with DATA, or with its first half although all is announced."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA if self.path == "/whole" else DATA[: len(DATA) // 2])

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture
def web() -> Iterator[str]:
    """A real web server, without a proxy before it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_a_real_web_server(tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    catalog = {name: Image(name=name, url=f"{web}/{name}", sha256=SUM) for name in ("whole", "half")}
    images = Repository(ImageSettings(cache="cache", catalog=catalog), tmp_path, "tag", no_volumes)
    with pytest.raises(TransientBackendError, match="/half: peer closed connection"):
        await read(images, "half")
    assert await read(images, "whole") == DATA
    assert await read(images, "half") == DATA, "the same content, by its sum"


async def test_a_pool_without_a_directory_saves_nothing(tmp_path: Path) -> None:
    images = Repository(ImageSettings(), tmp_path, "tag", no_volumes)
    assert not images.saves
    with pytest.raises(BackendRejected, match=r"set images\.directory"):
        async with images.saving("mine", "node/0", Image(name="mine")):
            pass
