"""The git database: users, domains, aliases, groups, limits, routes; from a commit to the snapshot that workers read.

=================  ==============================================================================
``names``          domains and addresses as the database spells them, pure
``records``        the records, as their files have them, pure
``values``         what must hold of one record's values, pure
``schema``         one file -> one record, or mistakes with file and line, pure
``rules``          what must hold between files, pure
``repository``     the bare repository: trees, commits, fast-forward (libgit2)
``remote``         fetch and push, with credentials from files (libgit2)
``edit``           one change by a command: checked, pushed, committed
``compiler``       a commit -> what changed and whether it keeps the rules
``snapshot``       records -> LMDB files of one commit; the pointer to the one in force
``files``          one LMDB file, open for reading
``verifiers``      the LMDB file with the password hashes, read by the control process alone
``passwords``      argon2id and SCRAM-SHA-256 verifiers; checks, at most two at once
``control``        the service inside the control process
``reader``         the worker's view of the snapshot in force
``logins``         the worker's short memory of verified logins
=================  ==============================================================================

Workers import ``reader`` and ``logins`` only: neither libgit2 nor argon2 is loaded there.
"""
