"""A storage that does not answer is told from one that says no."""

import errno

import pytest
from pyarrow import fs
from s3_server import CREDENTIALS

from trialstore.storage import (
    StorageFullError,
    is_away,
    open_storage,
)

S3_SAYS = "When listing objects under key 'x/' in bucket 'b': AWS Error {} operation: x"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        OSError(S3_SAYS.format("SLOW_DOWN during ListObjectsV2")),
        OSError(S3_SAYS.format("UNKNOWN (HTTP status 503) during HeadObject")),
        OSError(S3_SAYS.format("UNKNOWN (HTTP status 429) during HeadObject")),
        OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message"),
    ],
)
def test_what_a_storage_says_that_does_not_answer(error: OSError) -> None:
    assert is_away(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        StorageFullError(errno.ENOSPC, "No space left on device"),
        OSError(S3_SAYS.format("ACCESS_DENIED during PutObject")),
        OSError(S3_SAYS.format("NO_SUCH_BUCKET during PutObject")),
        OSError(S3_SAYS.format("UNKNOWN (HTTP status 400) during HeadObject")),
        OSError("INTERNAL is how the data are called"),
        RuntimeError("AWS Error SLOW_DOWN"),
    ],
)
def test_what_it_says_that_has_answered(error: Exception) -> None:
    assert not is_away(error)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.long
def test_an_object_store_that_nobody_serves_is_away(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    who, options = {
        "s3": ("", "region=us-east-1"),
        "gs": ("anonymous@", "retry_limit_seconds=1"),
    }[scheme]
    url = f"{scheme}://{who}bucket/runs?scheme=http&endpoint_override=127.0.0.1:9&{options}"
    storage = open_storage(url)
    with pytest.raises(OSError, match="onnect to server") as caught:
        storage.list()
    assert is_away(caught.value)


def test_a_store_that_is_away_when_its_url_is_opened_is_no_bad_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pyarrow asks for the region of a bucket whose URL does not tell it."""

    def from_uri(url: str) -> None:
        raise OSError(S3_SAYS.format("NETWORK_CONNECTION during HeadBucket"))

    monkeypatch.setattr(fs, "FileSystem", type("FileSystem", (), {"from_uri": from_uri}))
    with pytest.raises(OSError, match="NETWORK_CONNECTION") as caught:
        open_storage("s3://bucket/runs")
    assert is_away(caught.value)
