"""The replies that the server session gives on its own, each with its enhanced code (RFC 3463)."""

from __future__ import annotations

from typing import Final

from ptt.smtp.content import Fault
from ptt.smtp.reply import Reply

# For drivers: what they most often refuse with.
AUTH_FAILED: Final = Reply(535, "5.7.8", "Authentication credentials invalid")
LOCAL_ERROR: Final = Reply(451, "4.3.0", "Local error, try again later")
SHUTTING_DOWN: Final = Reply(421, "4.3.2", "the service is restarting, try again in a moment")
TIMED_OUT: Final = Reply(421, "4.4.2", "nothing came for too long, closing connection")

# Syntax and sequence: they count as errors of the client.
UNKNOWN_COMMAND: Final = Reply(500, "5.5.1", "Command not recognised")
BARE_IN_COMMAND: Final = Reply(500, "5.5.2", "Bare CR, bare LF or NUL in a command; lines end in CRLF")
LINE_TOO_LONG: Final = Reply(500, "5.5.2", "Line too long")
NOT_UTF8: Final = Reply(500, "5.5.2", "Command is neither ASCII nor UTF-8")
NO_ARGUMENT: Final = Reply(501, "5.5.4", "This command takes no argument")
NEEDS_ARGUMENT: Final = Reply(501, "5.5.4", "This command needs an argument")
BAD_HELO: Final = Reply(501, "5.5.4", "A host name is needed")
NOT_OFFERED: Final = Reply(502, "5.5.1", "Command not implemented")
TLS_ACTIVE: Final = Reply(503, "5.5.1", "TLS is active already")
AUTH_TWICE: Final = Reply(503, "5.5.1", "Already authenticated")
UNKNOWN_MECHANISM: Final = Reply(504, "5.5.4", "Unrecognised authentication type")
TLS_FIRST: Final = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
AUTH_FIRST: Final = Reply(530, "5.7.0", "Authentication required")
AUTH_NEEDS_TLS: Final = Reply(538, "5.7.11", "Encryption required for authentication")
BAD_SENDER: Final = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT: Final = Reply(501, "5.1.3", "Bad recipient address syntax")
NOT_INTERNATIONAL: Final = Reply(553, "5.6.7", "A non-ASCII address needs SMTPUTF8")
NO_SMTPUTF8: Final = Reply(555, "5.5.4", "Parameter SMTPUTF8 not supported")
HOLD_TOO_LONG: Final = Reply(501, "5.5.4", "The message cannot be held so long")
NO_BINARY: Final = Reply(501, "5.5.4", "BODY=BINARYMIME is not supported")
BINARY_BY_DATA: Final = Reply(503, "5.5.1", "BODY=BINARYMIME needs BDAT")

# Limits: no mistakes, they do not count.
TOO_MANY_RECIPIENTS: Final = Reply(452, "4.5.3", "Too many recipients")
TOO_LARGE: Final = Reply(552, "5.3.4", "Message too large")
NO_MISTAKE: Final = frozenset({TOO_MANY_RECIPIENTS, TOO_LARGE})
FAULTS: Final = {
    Fault.BARE: Reply(550, "5.6.0", "Bare CR or LF in the message; lines end in CRLF"),
    Fault.NUL: Reply(550, "5.6.0", "NUL in the message"),
    Fault.LONG_LINE: Reply(550, "5.6.0", "A line of the message is too long"),
    Fault.TOO_LARGE: TOO_LARGE,
}

# These end the session.
BAD_CHUNK: Final = Reply(501, "5.5.4", "BDAT needs the count of its octets, closing connection")  # what follows would
# be read as commands, although it may be content
BEHIND_STARTTLS: Final = Reply(554, "5.5.1", "Bytes behind STARTTLS, closing connection")
TOO_MANY_ERRORS: Final = Reply(421, "4.7.0", "Too many errors, closing connection")
TOO_MANY_AUTH: Final = Reply(421, "4.7.0", "Too many failed authentications, closing connection")
ENDS_SESSION: Final = {BAD_CHUNK: "BDAT without a count", BEHIND_STARTTLS: "bytes behind STARTTLS"}

# The usual positive answers, written once: they are sent for every message.
OK: Final = b"250 2.0.0 OK\r\n"
GO_AHEAD_TLS: Final = b"220 2.0.0 Ready to start TLS\r\n"
BYE: Final = b"221 2.0.0 Bye\r\n"
AUTHENTICATED: Final = b"235 2.7.0 Authentication successful\r\n"
SENDER_OK: Final = b"250 2.1.0 Sender ok\r\n"
RECIPIENT_OK: Final = b"250 2.1.5 Recipient ok\r\n"
MESSAGE_OK: Final = b"250 2.0.0 Message accepted\r\n"
START_MAIL: Final = b"354 End data with <CR><LF>.<CR><LF>\r\n"
CANNOT_VERIFY: Final = b"252 2.1.5 Cannot verify, will try to deliver\r\n"
HELP: Final = b"214 2.0.0 See RFC 5321 and RFC 6409\r\n"
