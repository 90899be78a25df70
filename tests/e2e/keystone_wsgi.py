"""Run by the python of Keystone's own environment: `keystone_wsgi.py KEYSTONE_CONF PORT` serves its public API."""

import os
import sys

os.environ["OS_KEYSTONE_CONFIG_FILES"] = sys.argv[1]
port = int(sys.argv[2])
sys.argv = ["keystone"]

import waitress  # noqa: E402
from keystone.server.wsgi import initialize_public_application  # noqa: E402

waitress.serve(initialize_public_application(), host="127.0.0.1", port=port, threads=4)
