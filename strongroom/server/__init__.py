"""The wiring: the only room that knows everybody. It makes the parts, hands them around and ends them in order.

serve    all of it in one process, with a PostgreSQL of its own unless one is named
api      the request side; as many processes as wanted, behind a balancer
worker   the job side and its tickers; as many as wanted, near what they protect

start    state lock -> PostgreSQL -> schema -> store -> master key -> first accounts -> worker -> listener -> "listens"
wait     api and worker, for a database or a store that does not answer yet (waiting.py)
stop     listener (no new requests) -> worker (drains) -> pools -> PostgreSQL -> state lock
"""

from strongroom.server.processes import run_api, run_worker, serve

__all__ = ["run_api", "run_worker", "serve"]
