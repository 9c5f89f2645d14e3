"""The configuration: defaults, every key, and every mistake named at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Backend, BackendContext, BackendFactory, SettingProblem
from broker.config import ConfigError, QueueSettings, ServerSettings, Settings, TenantSettings, load
from broker.core.demand import Placement
from broker.policy_registry import Kind, own
from broker.pool_settings import PoolSettings
from broker.toml_reader import parse_duration

POOL = '[pools.lab]\nbackend = "fake"\n'


class Fake:
    """A backend that knows `hosts` and, if told so, `max_in_flight`."""

    def __init__(self, *also: str) -> None:
        self.known = {"hosts", *also}

    def check(self, settings: Mapping[str, object]) -> Sequence[SettingProblem]:
        problems = [SettingProblem(key=key, message="unknown key") for key in settings if key not in self.known]
        hosts = settings.get("hosts", [])
        assert isinstance(hosts, list)
        problems += [
            SettingProblem(key=f"hosts[{index}].cpu", message="is missing")
            for index, host in enumerate(hosts)
            if "cpu" not in host
        ]
        if isinstance(flight := settings.get("max_in_flight", 1), int) and flight > 64:
            problems.append(SettingProblem(key="max_in_flight", message="at most 64"))
        return problems

    def create(self, settings: Mapping[str, object], context: BackendContext) -> Backend:
        raise NotImplementedError


def find(name: str) -> BackendFactory:
    match name:
        case "fake":
            return Fake()
        case "busy":
            return Fake("max_in_flight")
        case "xen":
            raise ModuleNotFoundError("No module named 'libvirt'", name="libvirt")
        case _:
            raise LookupError(f'no backend is called "{name}"; there are: busy, fake, xen')


BROUGHT = {Kind.QUEUE_ORDER: "shortest-first", Kind.VICTIM_CHOICE: "longest-left", Kind.HOST_CHOICE: "greenest"}


def policy_names(kind: Kind) -> list[str]:
    """As if a third party had brought some policies."""
    return [*own(kind), *([BROUGHT[kind]] if kind in BROUGHT else [])]


class Files:
    """Writes a document and reads it as a configuration."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "broker.toml"

    def load(self, text: str) -> Settings:
        self.path.write_text(text)
        return load(self.path, find, policy_names)

    def problems(self, text: str) -> dict[str, str]:
        with pytest.raises(ConfigError) as refused:
            self.load(text)
        return dict(refused.value.problems)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_defaults_are_those_of_the_settings(files: Files, tmp_path: Path) -> None:
    settings = files.load(POOL)
    assert settings.server == ServerSettings(state=tmp_path / "broker.db")
    assert settings.pools["lab"] == PoolSettings(name="lab", backend="fake")
    assert settings.queue == QueueSettings()
    assert (settings.tenants, settings.instance_types, settings.directory) == ({}, {}, tmp_path)


def test_policies_of_third_parties_are_known_by_name(files: Files) -> None:
    settings = files.load(
        POOL + 'victims = "longest-left"\nplacement = "greenest"\n[queue]\norder = "shortest-first"\n'
    )
    pool = settings.pools["lab"]
    assert (settings.queue.order, pool.victims, pool.host_choice) == ("shortest-first", "longest-left", "greenest")
    assert pool.placement is Placement.PACK  # as where none is configured


@pytest.mark.parametrize("name", ["pack", "spread", "one-per-host"])
def test_a_placement_of_the_broker_asks_no_policy(files: Files, name: str) -> None:
    assert files.load(POOL + f'placement = "{name}"').pools["lab"].host_choice == ""


def test_every_key(files: Files, tmp_path: Path) -> None:
    settings = files.load("""
        [server]
        listen = "[::1]:0"
        state = "/var/lib/broker/state.db"
        drain_timeout = 0
        call_timeout = "1.5m"
        watch_history = 5
        [pools.lab]
        backend = "busy"
        default_duration = "none"
        max_duration = "none"
        preference = -3
        placement = "spread"
        refresh_interval = ".5m"
        memory_overhead = 96
        overcommit = {cpu = 2, memory = 1.25}
        reserve = {memory = 512, "example.com/gpu" = 1}
        start_timeout = 60
        transition_timeout = "1m30s"
        end_warning = 0
        keep_after_end = "1w"
        retry = {budget = "2m", initial = "10ms", maximum = 1.5}
        breaker = {failures = 2, probe_interval = "250ms"}
        max_in_flight = 3
        [[pools.lab.hosts]]
        cpu = 4
        [queue]
        order = "arrival"
        policy_budget = "20ms"
        starvation_limit = "6h"
        half_life = "1d"
        depth = 50
        [instance_types."m1.small"]
        cpu = 1000
        memory = 2048
        [tenants.acme]
        display_name = "Acme"
        limits = {workspaces = 10, cpu = 0}
        pool_limits = {lab = {nodes = 5}}
        allowed_pools = ["lab"]
        max_duration = "30d"
    """)
    assert (settings.server.host, settings.server.port, settings.server.listen) == ("::1", 0, "[::1]:0")
    assert settings.server.state == Path("/var/lib/broker/state.db")
    assert (settings.server.drain_timeout, settings.server.call_timeout) == (0, 90)
    pool = settings.pools["lab"]
    assert (pool.default_duration, pool.max_duration, pool.placement) == (None, None, Placement.SPREAD)
    assert (pool.overcommit, pool.reserve) == ({"cpu": 2.0, "memory": 1.25}, {"memory": 512, "example.com/gpu": 1})
    assert (pool.retry.budget, pool.retry.initial, pool.retry.maximum) == (120, 0.01, 1.5)
    assert (pool.breaker.failures, pool.breaker.probe_interval) == (2, 0.25)
    assert (pool.refresh_interval, pool.transition_timeout, pool.keep_after_end) == (30, 90, 604_800)
    assert pool.backend_settings == {"hosts": [{"cpu": 4}], "max_in_flight": 3}
    assert settings.queue == QueueSettings(
        order="arrival",
        policy_budget=0.02,
        starvation_limit=timedelta(hours=6),
        half_life=timedelta(days=1),
        depth=50,
    )
    assert settings.instance_types == {"m1.small": {"cpu": 1000, "memory": 2048}}
    assert settings.tenants["acme"] == TenantSettings(
        name="acme",
        display_name="Acme",
        limits={"workspaces": 10, "cpu": 0},
        pool_limits={"lab": {"nodes": 5}},
        allowed_pools=("lab",),
        max_duration=timedelta(days=30),
    )


BAD: list[tuple[str, str, str]] = [
    # document, path, what is said of it
    ("", "pools", "one pool at least"),
    ("pools = 4", "pools", "4 is not a table"),
    ("sever = 1\n" + POOL, "sever", "did you mean server?"),
    ('[server]\nlisten = "nowhere"\n' + POOL, "server.listen", "is no address"),
    ('[server]\nlisten = "::1:80"\n' + POOL, "server.listen", "is no address"),
    ('[server]\nlisten = "127.0.0.1:70000"\n' + POOL, "server.listen", "is no address"),
    ('[server]\nlisten = "0.0.0.0:7443"\n' + POOL, "server.listen", "not a loopback address"),
    ('[server]\nlisten = "[::]:7443"\n' + POOL, "server.listen", "not a loopback address"),
    ('[server]\nlisten = "broker.example.com:7443"\n' + POOL, "server.listen", "not a loopback address"),
    ("[server]\nlisten = 7443\n" + POOL, "server.listen", "not a text"),
    ('[server]\ndrain_timeout = "soon"\n' + POOL, "server.drain_timeout", "is not a duration"),
    ("[server]\ncall_timeout = 0\n" + POOL, "server.call_timeout", "above 0"),
    ("[server]\ncall_timeout = nan\n" + POOL, "server.call_timeout", "above 0"),
    ("[server]\ncall_timeout = true\n" + POOL, "server.call_timeout", "is not a duration"),
    ("[server]\nstat = 1\n" + POOL, "server.stat", "did you mean state?"),
    ("[pools.lab]\n", "pools.lab.backend", "is missing"),
    ('[pools.lab]\nbackend = "fakee"', "pools.lab.backend", "there are: busy, fake, xen"),
    ('[pools.lab]\nbackend = "fakee"\nmax_duraton = 1', "pools.lab.max_duraton", "did you mean max_duration?"),
    ('[pools.lab]\nbackend = "xen"', "pools.lab.backend", "pip install libvirt-python"),
    ('[pools.Lab]\nbackend = "fake"', "pools.Lab", "is no id"),
    ('[pools."a b"]\nbackend = "fake"', 'pools."a b"', "is no id"),
    (POOL + "defualt_duration = 3", "pools.lab.defualt_duration", "unknown key; did you mean default_duration?"),
    (POOL + "[[pools.lab.hosts]]\ncpu = 1\n[[pools.lab.hosts]]", "pools.lab.hosts[1].cpu", "is missing"),
    (POOL + 'preference = "high"', "pools.lab.preference", "not a whole number"),
    (POOL + "preference = 1.5", "pools.lab.preference", "not a whole number"),
    (POOL + "preference = true", "pools.lab.preference", "not a whole number"),
    (POOL + 'placement = "packed"', "pools.lab.placement", "did you mean pack?"),
    (POOL + 'placement = "geenest"', "pools.lab.placement", "did you mean greenest?"),
    (POOL + 'backfill = "agressive"', "pools.lab.backfill", "did you mean aggressive?"),
    (POOL + 'backfill = "shortest-first"', "pools.lab.backfill", "not one of none, aggressive, conservative"),
    (POOL + 'victims = "longest-lef"', "pools.lab.victims", "did you mean longest-left?"),
    (POOL + "victims = 1", "pools.lab.victims", "1 is not one of youngest, smallest"),
    (POOL + '[queue]\norder = "shortest"', "queue.order", "did you mean shortest-first?"),
    (POOL + '[queue]\npolicy_budget = "11s"', "queue.policy_budget", "is 11 s; at most 10 s"),
    (POOL + "[queue]\npolicy_budget = 0", "queue.policy_budget", "above 0"),
    (POOL + 'default_duration = "20d"', "pools.lab.default_duration", "longer than max_duration"),
    (POOL + 'default_duration = "none"', "pools.lab.default_duration", "longer than max_duration"),
    (POOL + 'max_duration = "-1s"', "pools.lab.max_duration", "is not a duration"),
    (POOL + 'max_duration = "1d 2h"', "pools.lab.max_duration", "is not a duration"),
    (POOL + "max_duration = 1e300", "pools.lab.max_duration", "days"),
    (POOL + "overcommit = {cpu = 0}", "pools.lab.overcommit.cpu", "above 0"),
    (POOL + "overcommit = {cpu = inf}", "pools.lab.overcommit.cpu", "above 0"),
    (POOL + "overcommit = 2.0", "pools.lab.overcommit", "is not a table"),
    (POOL + 'reserve = {"a.b/c" = -1}', 'pools.lab.reserve."a.b/c"', "is -1"),
    (POOL + 'retry = {initial = "1m"}', "pools.lab.retry.initial", "longer than maximum"),
    (POOL + "retry = {attempts = 5}", "pools.lab.retry.attempts", "is no key here"),
    (POOL + "breaker = {failures = 0}", "pools.lab.breaker.failures", "1 to"),
    (POOL + "max_in_flight = 0", "pools.lab.max_in_flight", "1 to"),
    ('[pools.lab]\nbackend = "busy"\nmax_in_flight = 99', "pools.lab.max_in_flight", "at most 64"),
    (POOL + '[instance_types."m1.x"]\ncpu = 0', 'instance_types."m1.x".cpu', "1 to"),
    (POOL + "[instance_types.empty]", "instance_types.empty", "says no amounts"),
    (POOL + "[instance_types]\nsmall = 3", "instance_types.small", "is not a table"),
    (POOL + "[tenants.acme]\nlimits = {nodes = -1}", "tenants.acme.limits.nodes", "is -1"),
    (POOL + '[tenants.acme]\nallowed_pools = ["lob"]', "tenants.acme.allowed_pools", "did you mean lab?"),
    (POOL + "[tenants.acme]\nallowed_pools = [1]", "tenants.acme.allowed_pools", "list of texts"),
    (POOL + "[tenants.acme]\npool_limits = {lob = {nodes = 1}}", "tenants.acme.pool_limits", "there is no pool"),
    (POOL + "[tenants.acme]\nquota = 1", "tenants.acme.quota", "is no key here"),
    (POOL + "[tenants.-]", "tenants.-", "is no id"),
]


@pytest.mark.parametrize(("text", "path", "said"), BAD)
def test_bad_key_is_named(files: Files, text: str, path: str, said: str) -> None:
    problems = files.problems(text)
    assert said in problems[path]


def test_everything_bad_at_once(files: Files) -> None:
    text = """
        typo = 1
        [server]
        listen = "0.0.0.0:1"
        [pools.a]
        backend = "nothing"
        [pools.b]
        backend = "fake"
        preference = "x"
        unknown = 1
        [instance_types.x]
        cpu = -1
    """
    problems = files.problems(text)
    assert set(problems) == {
        "typo",
        "server.listen",
        "pools.a.backend",
        "pools.b.preference",
        "pools.b.unknown",
        "instance_types.x.cpu",
    }
    with pytest.raises(ConfigError, match=r"(?s)broker\.toml: 6 problems\n.*pools\.b\.preference: 'x' is not"):
        files.load(text)


def test_syntax_error_names_its_line(files: Files) -> None:
    assert "line 2" in files.problems("a = 1\nb = = 2")[""]


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "latin.toml")


def test_tenants_open_the_network(files: Files) -> None:
    settings = files.load('[server]\nlisten = "0.0.0.0:7443"\n[tenants.acme]\n' + POOL)
    assert settings.server.listen == "0.0.0.0:7443"


def test_short_max_duration_shortens_the_default(files: Files) -> None:
    assert files.load(POOL + 'max_duration = "2h"').pools["lab"].default_duration == timedelta(hours=2)


def test_shared_key_is_kept_from_a_backend_that_does_not_know_it(files: Files) -> None:
    pool = files.load(POOL + "max_in_flight = 3").pools["lab"]
    assert (pool.max_in_flight, pool.backend_settings) == (3, {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), (".5h", 1800), ("1d12h", 129_600), ("250ms", 0.25), ("1w", 604_800), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "1x", "-1s", "s", "1s ", "1 s", "1e3s", "٣s", "1.2.3s", "99999w"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_not(text: str) -> None:
    parse: Callable[[str], float] = parse_duration
    try:
        seconds = parse(text)
    except ValueError:
        return
    assert seconds >= 0
