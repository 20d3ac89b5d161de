"""`widthlab submit` against servers of all kinds: one message, the right exit code, no secret."""

import io
import json
import socket
import sys
import zipfile
from collections.abc import Iterator

import pytest
import repository
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions
from ray_head import Head, serving

import orchestrator.jobs.submit
from orchestrator.cli import __main__ as cli
from orchestrator.jobs import follow as job_follow
from orchestrator.jobs import server as job_server
from orchestrator.jobs.server import Job, connect
from trialstore.errors import InputError

TINY = str(repository.TINY)
STORAGE = ["--storage", "/shared"]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    for name in ("MLFLOW_TRACKING_URI", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    # No sleeping for luck: what is asked again is asked at once.
    monkeypatch.setattr(job_follow, "POLL_S", 0.01)
    with serving(Head()) as head:
        yield head


class Command:
    """`widthlab submit`, as it is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self._monkeypatch.setattr(sys, "argv", ["widthlab", "submit", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        output = self._capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.out, output.err


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return Command(monkeypatch, capsys)


# --- submitted -----------------------------------------------------------------------------


def test_the_jobs_id_is_all_of_stdout(head: Head, submit: Command):
    code, out, err = submit(TINY, *STORAGE, "--address", head.address)
    ((job_id, job),) = head.jobs.items()
    assert (code, out) == (0, f"{job_id}\n")
    assert job_id.startswith("widthlab-tiny-")
    assert f"widthlab submit --attach {job_id} --address {head.address}" in err
    assert job["metadata"] == {"widthlab_sweep": "tiny", "widthlab_storage": "/shared"}


def test_no_secret_is_where_ray_shows_or_logs_it(
    head: Head, submit: Command, monkeypatch: pytest.MonkeyPatch
):
    secrets = {
        "MLFLOW_TRACKING_PASSWORD": "password-4711",
        "MLFLOW_TRACKING_TOKEN": "token-4711",
        "MLFLOW_TRACKING_URI": "https://me:inside-4711@mlflow:5000",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "cluster-4711")
    storage = "s3://bucket/runs"
    code, out, err = submit(TINY, "--storage", storage, "--address", head.address, "--json")
    assert code == 0
    assert "4711" not in out + err + json.dumps(head.jobs)
    assert "4711" not in "".join(path for _, path in head.asked)
    (package,) = head.packages.values()
    archive = zipfile.ZipFile(io.BytesIO(package))
    environment = archive.read("job.env").decode()
    assert all(value in environment for value in (*secrets.values(), storage))
    assert "cluster-4711" not in environment
    assert archive.getinfo("job.env").external_attr >> 16 & 0o777 == 0o600


def test_a_secret_of_the_storage_is_refused_and_not_repeated(head: Head, submit: Command):
    storage = "s3://key:bucket-4711@bucket/runs"
    code, out, err = submit(TINY, "--storage", storage, "--address", head.address)
    assert code == 2
    assert "AWS_SECRET_ACCESS_KEY" in err
    assert "4711" not in out + err
    assert not head.jobs


def test_ray_is_given_the_time_that_checkpoints_take(head: Head, submit: Command):
    assert submit(TINY, *STORAGE, "--address", head.address)[0] == 0
    (job,) = head.jobs.values()
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "600"}


def test_the_address_that_is_given_wins_over_rays_variables(
    head: Head, submit: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert submit(TINY, *STORAGE, "--address", head.address)[0] == 0
    assert len(head.jobs) == 1


def test_rays_variable_serves_where_no_address_is_given(
    head: Head, submit: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    assert submit(TINY, *STORAGE)[0] == 0
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, _, err = submit(TINY, *STORAGE)
    assert (code, "--address is missing" in err) == (2, True)


def test_a_sweep_is_not_submitted_twice_at_once(head: Head, submit: Command):
    def again(*arguments: str) -> int:
        return submit(TINY, "--set", "name=s", *arguments, "--address", head.address)[0]

    head.add("first", "RUNNING")
    code, _, err = submit(TINY, "--set", "name=s", *STORAGE, "--address", head.address)
    assert code == 2
    assert " first" in err
    assert again("--storage", "/elsewhere") == 0
    head.jobs["first"]["status"] = "FAILED"
    assert again(*STORAGE) == 0


# --- servers of all kinds ------------------------------------------------------------------

REFUSALS = [
    ("/api", 401, "Unauthorized: Missing authentication token", "asks for a token"),
    ("/api", 403, "Forbidden: Invalid authentication token", "does not accept the token"),
    ("/api", 404, "not found", "is no Ray job server"),
    ("/api", 200, "<html>Jupyter</html>", "is no Ray job server"),
    ("/api", 200, '{"version": "1.2"}', "is no Ray job server"),
    ("/api", 200, "[]", "is no Ray job server"),
    ("/api", 502, "bad gateway", "is no Ray job server"),
    ("/api/jobs", 200, '[{"type": "?"}]', "is no Ray job server"),
    ("/api/jobs", 405, "not allowed", "refuses"),
]


@pytest.mark.parametrize(("path", "status", "body", "message"), REFUSALS)
def test_a_server_that_refuses_or_is_none_is_bad_input(
    head: Head, submit: Command, path: str, status: int, body: str, message: str
):
    head.instead[path] = (status, body)
    code, out, err = submit(TINY, *STORAGE, "--address", head.address)
    assert (code, out) == (2, "")
    assert err.count("error: ") == 1
    assert f"{head.address} {message}" in err
    assert ("RAY_AUTH_TOKEN_PATH" in err) == (status in (401, 403))


def test_an_address_where_nobody_listens(submit: Command):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, _, err = submit("--attach", "a", "--address", f"http://127.0.0.1:{port}")
    assert code == 2
    assert f"127.0.0.1:{port}" in err
    assert "refused" in err


def test_a_server_that_takes_the_connection_and_says_nothing(
    submit: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_server, "REQUEST_TIMEOUT_S", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        code, _, err = submit("--attach", "a", "--address", f"http://127.0.0.1:{port}")
    assert code == 2
    assert "timed out" in err


@pytest.mark.parametrize("trouble", [["before"], ["before", "before", "after"], ["after"]])
def test_a_head_that_is_not_ready_or_slow_to_answer_starts_one_job(
    head: Head, submit: Command, monkeypatch: pytest.MonkeyPatch, trouble: list[str]
):
    monkeypatch.setattr(orchestrator.jobs.submit, "POLL_S", 0.01)
    head.trouble = trouble
    code, out, _ = submit(TINY, *STORAGE, "--address", head.address)
    assert (code, [out.strip()]) == (0, list(head.jobs))


def test_a_head_that_cannot_serve_leaves_it_open_whether_the_job_started(
    head: Head, submit: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(orchestrator.jobs.submit, "PATIENCE_S", 0)
    head.trouble = ["before"]
    code, out, err = submit(TINY, *STORAGE, "--address", head.address)
    assert (code, out) == (1, "")
    assert "job widthlab-tiny-" in err
    assert "No available agent" in err


@pytest.mark.parametrize(
    "address",
    ["head:6379", "auto", "ray://head:10001", "http://", "http://[::1", "http://head:x", "", "x y"],
)
def test_an_address_that_is_no_dashboards(submit: Command, address: str):
    for what in (["--attach", "a"], [TINY, *STORAGE]):
        code, _, err = submit(*what, "--address", address)
        assert code == 2
        assert "http://HOST:8265" in err


@given(st.text().filter(lambda text: not text.lower().startswith(("http://", "https://"))))
def test_no_text_that_is_no_http_address_gets_as_far_as_ray(text: str):
    with pytest.raises(InputError):
        connect(text)


def test_a_password_in_the_address_is_refused_and_not_repeated(submit: Command):
    code, _, err = submit("--attach", "a", "--address", "http://me:hidden@head:8265")
    assert code == 2
    assert "hidden" not in err


CHOICES = [
    [], [TINY, "--attach", "a"], ["--stop", "a", "--attach", "b"], ["--attach", "a", "--follow"],
    ["--stop", "a", "--set", "a=1"], ["--attach", "a", "--retry-failed"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", CHOICES)
def test_options_that_would_mean_nothing_are_refused(submit: Command, arguments: list[str]):
    code, out, err = submit(*arguments, "--address", "http://127.0.0.1:1")
    assert (code, out) == (2, "")
    assert "sweep file" in err


# --- jobs that are there -------------------------------------------------------------------


def test_the_jobs_are_those_of_sweeps_the_latest_first(head: Head):
    head.add("old", "FAILED", end_time=1_700_000_003_000, driver_exit_code=1)
    head.add("new", "RUNNING", start_time=1_700_000_002_000)
    head.add("not-ours", "RUNNING", metadata={})
    head.add("driver", "RUNNING", type="DRIVER", submission_id=None)
    found = connect(head.address).jobs()
    assert [(job.id, job.sweep, job.state, job.since, job.exit_code) for job in found] == [
        ("new", "s", "running", "2023-11-14T22:13:22+00:00", None),
        ("old", "s", "failed", "2023-11-14T22:13:23+00:00", 1),
    ]


def test_stop_asks_ray_and_waits_for_the_end(head: Head, submit: Command):
    head.add("mine", "RUNNING")
    code, out, err = submit("--stop", "mine", "--address", head.address, "--json")
    assert code == 0
    assert head.stopped == ["mine"]
    assert "write a checkpoint" in err
    assert json.loads(out)["state"] == "stopped"


@pytest.mark.parametrize("option", ["--stop", "--attach"])
@pytest.mark.parametrize(
    "job_id", ["absent", "not-ours", "../version", "mine?x", "mine#x", "?", ""]
)
def test_a_job_that_is_none_of_a_sweep_is_left_alone(
    head: Head, submit: Command, option: str, job_id: str
):
    head.add("not-ours", "RUNNING", metadata={})
    head.add("mine", "RUNNING")
    code, _, err = submit(option, job_id, "--address", head.address)
    assert code == 2
    assert (bool(job_id) and job_id in err) == bool(job_id)
    assert head.stopped == []


def test_a_job_that_is_over_cannot_be_stopped(head: Head, submit: Command):
    head.add("done", "SUCCEEDED")
    code, _, err = submit("--stop", "done", "--address", head.address)
    assert code == 2
    assert "nothing to stop" in err


# --- how a job ends ------------------------------------------------------------------------

LOG = "Job entrypoint command failed with exit code 2, last available logs:\nx\nerror: no corpus\n"
ENDINGS = [
    ("SUCCEEDED", {"driver_exit_code": 0}, 0, "succeeded"),
    ("STOPPED", {}, 1, "was stopped"),
    ("FAILED", {"driver_exit_code": 1}, 1, "exit code 1"),
    ("FAILED", {"driver_exit_code": 2, "message": LOG}, 2, "job mine failed: no corpus"),
    ("FAILED", {"driver_exit_code": -9}, 1, "SIGKILL"),
    ("FAILED", {"driver_exit_code": 137}, 1, "SIGKILL"),
    ("FAILED", {"driver_exit_code": 127}, 1, "`python`"),
    ("FAILED", {"message": "Job supervisor actor died: x\nmore"}, 1, "supervisor actor died: x"),
]


@pytest.mark.parametrize(("status", "details", "code", "message"), ENDINGS)
def test_following_ends_as_the_job_does_and_says_how(
    head: Head, submit: Command, status: str, details: dict, code: int, message: str
):
    head.add("mine", status, **details)
    head.logs["mine"] = "the log\n"  # the stand-in has no web socket to tail it by
    ended, out, err = submit("--attach", "mine", "--address", head.address)
    assert (ended, out) == (code, "the log\n")
    assert message in err.splitlines()[-1]


def test_with_json_the_log_goes_to_stderr(head: Head, submit: Command):
    head.add("mine", "FAILED", driver_exit_code=2, message=LOG)
    head.logs["mine"] = "the log\n"
    code, out, err = submit("--attach", "mine", "--address", head.address, "--json")
    told = json.loads(out)
    assert (code, told["exit_code"], told["state"]) == (2, 2, "failed")
    assert mentions(told["message"], "job mine ... no corpus")
    assert "the log\n" in err


@given(
    state=st.sampled_from(["pending", "running", "stopped", "succeeded", "failed"]),
    code=st.none() | st.integers(-300, 300),
    message=st.none() | st.text(),
)
def test_every_job_that_is_over_has_an_exit_code_and_one_line(
    state: str, code: int | None, message: str | None
):
    job = Job("id", "s", "/shared", state, 1, 2, code, message)
    assert (job.exit_code is None) == (state in ("pending", "running"))
    assert job.exit_code in (None, 0, 1, 2)
    assert len(job.ending.splitlines()) == 1
