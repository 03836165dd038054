"""SMTP without I/O: bytes in, events out, replies as bytes. No socket, no clock, no gevent.

Read ``events`` (what a session says), ``states`` (what is legal when), then ``server`` and ``client``, whose
docstrings show a driver. ``grammar`` and ``params`` hold the syntax, ``dotstuff`` the content, ``sasl`` AUTH.
"""

from ptt.smtp.capabilities import Capabilities
from ptt.smtp.client import ClientSession
from ptt.smtp.config import ServerConfig
from ptt.smtp.errors import ProtocolError
from ptt.smtp.events import (
    NEED_DATA,
    AuthAttempt,
    AuthDone,
    AuthStep,
    ClientEvent,
    Closed,
    FinalDot,
    Hello,
    MailFrom,
    MessageComplete,
    MessageDone,
    MessageStart,
    NeedData,
    RcptTo,
    Ready,
    Refused,
    ResetDone,
    Result,
    ServerEvent,
    StartTls,
    TlsReady,
    TlsRefused,
)
from ptt.smtp.params import MailParams, RcptParams
from ptt.smtp.reply import Reply
from ptt.smtp.sasl import Secret
from ptt.smtp.server import ServerSession

__all__ = [
    "NEED_DATA",
    "AuthAttempt",
    "AuthDone",
    "AuthStep",
    "Capabilities",
    "ClientEvent",
    "ClientSession",
    "Closed",
    "FinalDot",
    "Hello",
    "MailFrom",
    "MailParams",
    "MessageComplete",
    "MessageDone",
    "MessageStart",
    "NeedData",
    "ProtocolError",
    "RcptParams",
    "RcptTo",
    "Ready",
    "Refused",
    "Reply",
    "ResetDone",
    "Result",
    "Secret",
    "ServerConfig",
    "ServerEvent",
    "ServerSession",
    "StartTls",
    "TlsReady",
    "TlsRefused",
]
