"""For programs of OpenStack in tests, by their PYTHONPATH: transactions on SQLite wait for each other.

oslo.db begins them so that they read first and ask for the right to write later. When two do, SQLite refuses one at
once, whatever time-out it was given, and the program answers 500. One that asks at its beginning waits.
"""

import sqlite3.dbapi2

_connect = sqlite3.dbapi2.connect


class _Cursor(sqlite3.Cursor):
    def execute(self, sql, *words):
        return super().execute("BEGIN IMMEDIATE" if sql == "BEGIN" else sql, *words)


class _Connection(sqlite3.Connection):
    def cursor(self, factory=_Cursor):
        return super().cursor(factory)


def _patient(*words, **named):
    return _connect(*words, **{"factory": _Connection, "timeout": 120} | named)


sqlite3.dbapi2.connect = _patient
