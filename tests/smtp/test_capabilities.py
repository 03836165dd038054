"""What a client makes of the reply to EHLO."""

import pytest

from ptt.smtp import Capabilities, Reply
from ptt.smtp.capabilities import Limits


def offered(*lines: str) -> Capabilities:
    return Capabilities(Reply(250, "", "\n".join(("mx.example.org", *lines))))


@pytest.mark.parametrize(
    ("line", "limits"),
    [
        ("LIMITS", Limits()),
        ("LIMITS RCPTMAX=20 MAILMAX=5 RCPTDOMAINMAX=1", Limits(5, 20, 1)),
        ("limits rcptmax=999999", Limits(rcptmax=999_999)),
        ("LIMITS RCPTMAX=0 MAILMAX=1000000 RCPTDOMAINMAX", Limits()),
        ("LIMITS RCPTMAX=-1 MAILMAX=1_0 RCPTDOMAINMAX=\u0661 X=3 =4 _FIELDS=5", Limits()),
        ("LIMITS RCPTMAX=", Limits()),
        ("SIZE 5", Limits()),
    ],
)
def test_limits(line: str, limits: Limits) -> None:
    assert offered(line).limits == limits


def test_binarymime_needs_chunking() -> None:
    assert not offered("BINARYMIME").binarymime
    assert offered("CHUNKING", "BINARYMIME").binarymime
    assert offered("CHUNKING").chunking


def test_parameters_follow_what_is_offered() -> None:
    assert not offered("8BITMIME").mail & {"HOLDFOR", "HOLDUNTIL", "MT-PRIORITY", "RET", "SMTPUTF8"}
    assert {"HOLDFOR", "HOLDUNTIL"} <= offered("FUTURERELEASE 1 2030-01-01T00:00:00Z").mail
    assert "MT-PRIORITY" in offered("MT-PRIORITY MIXER").mail
