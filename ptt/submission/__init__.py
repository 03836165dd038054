"""Mail comes in: listeners, sessions, who may send what, and the moment of the 250."""
