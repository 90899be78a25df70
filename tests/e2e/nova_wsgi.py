"""Run by the python of Nova's own environment: `nova_wsgi.py MODULE PORT` serves its `application`."""

import importlib
import sys

module, port = sys.argv[1], int(sys.argv[2])
sys.argv = [module]

import waitress  # noqa: E402

waitress.serve(importlib.import_module(module).application, host="127.0.0.1", port=port, threads=4)
