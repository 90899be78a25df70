"""As much of Neutron as a real Nova asks for: collections of objects, found by their fields, ports with an address.

Not a Neutron: it checks no token, knows no project and plugs nothing. Nova shows no server without one.
"""

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Thing = dict[str, Any]


class PretendedNeutron:
    """Serves from `url` until it is stopped. things: by collection, as in its paths."""

    def __init__(self) -> None:
        self.things: dict[str, list[Thing]] = {}
        self._lock = threading.Lock()
        neutron = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = neutron.answer(self.command, self.path, json.loads(body) if body else None)
                data = json.dumps(answer).encode() if answer is not None else b""
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = _answer

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def network(self, name: str, project_id: str) -> str:
        network, subnet = str(uuid.uuid4()), str(uuid.uuid4())
        own: Thing = {"tenant_id": project_id, "project_id": project_id}
        where = {"network_id": network, "cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.1", "ip_version": 4}
        dull: Thing = {"enable_dhcp": False, "dns_nameservers": [], "host_routes": []}
        self._add("subnets", own | {"id": subnet} | where | dull)
        seen: Thing = {"shared": False, "mtu": 1500, "router:external": False, "admin_state_up": True}
        more: Thing = {"status": "ACTIVE", "port_security_enabled": False}
        self._add("networks", own | {"id": network, "name": name, "subnets": [subnet]} | seen | more)
        return network

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        place = urlsplit(path)
        parts = [part for part in place.path.split("/") if part]
        if len(parts) < 2:
            links = [{"rel": "self", "href": f"{self.url}/v2.0/"}]
            return 200, {"versions": [{"id": "v2.0", "status": "CURRENT", "links": links}]}
        collection = parts[1]
        with self._lock:
            if collection == "quotas":
                return 200, {"quota": {"port": -1, "network": -1}}
            if method == "POST":
                return 201, {_one(collection): self._add(collection, body[_one(collection)])}
            if len(parts) == 2:
                return 200, {collection.replace("-", "_"): self._found(collection, parse_qs(place.query))}
            known = [thing for thing in self.things.get(collection, []) if thing["id"] == parts[2]]
            if not known:
                return 404, {"NeutronError": {"type": "NotFound", "message": f"no {parts[2]}", "detail": ""}}
            if method == "PUT":
                known[0].update(body[_one(collection)])
            if method == "DELETE":
                self.things[collection].remove(known[0])
                return 204, None
            return 200, {_one(collection): known[0]}

    def _found(self, collection: str, query: dict[str, list[str]]) -> list[Thing]:
        wanted = {name: values for name, values in query.items() if name not in ("fields", "limit", "marker")}
        return [
            thing
            for thing in self.things.get(collection, [])
            if all(str(thing.get(name)).lower() in [v.lower() for v in values] for name, values in wanted.items())
        ]

    def _add(self, collection: str, words: Thing) -> Thing:
        made: Thing = {"id": str(uuid.uuid4())} | words
        if collection == "ports":
            number = len(self.things.get("ports", ())) + 10
            (network,) = [one for one in self.things["networks"] if one["id"] == made["network_id"]]
            made = {
                "mac_address": f"fa:16:3e:00:00:{number:02x}",
                "fixed_ips": [{"subnet_id": network["subnets"][0], "ip_address": f"10.0.0.{number}"}],
                "status": "ACTIVE", "admin_state_up": True, "device_id": "", "device_owner": "", "security_groups": [],
                "binding:vif_type": "ovs", "binding:vnic_type": "normal", "binding:vif_details": {},
                "binding:profile": {}, "port_security_enabled": False, "allowed_address_pairs": [],
                "tenant_id": network["tenant_id"], "project_id": network["tenant_id"],
            } | made  # fmt: skip
        self.things.setdefault(collection, []).append(made)
        return made


def _one(collection: str) -> str:
    return {"security-groups": "security_group", "policies": "policy"}.get(
        collection, collection.rstrip("s").replace("-", "_")
    )
