"""The ``ptt`` command, and what ``make run`` and ``ptt demo`` are made of."""
